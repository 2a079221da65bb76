"""Prompts are written out as lm-evaluation-harness 0.4.13 made them of the same rows."""

import bz2
import json

import pytest

from lowbit.errors import ConfigError, DataError
from lowbit.evals.tasks import TASKS, Item, read_items, task

ROWS = {
    "arc_easy": (
        {"question": "What burns?", "choices": {"text": ["oil", "sand"], "label": ["A", "B"]}, "answerKey": "A"},
        [("Question: What burns?\nAnswer:", " oil"), ("Question: What burns?\nAnswer:", " sand")],
        0,
    ),
    "arc_challenge": (
        {"question": "What burns?", "choices": ["oil", "sand", "fog"], "label": 2},
        [("Question: What burns?\nAnswer:", f" {choice}") for choice in ("oil", "sand", "fog")],
        2,
    ),
    "boolq": (
        {"passage": "Oil burns.", "question": "does oil burn", "label": 1},
        [("Oil burns.\nQuestion: does oil burn?\nAnswer:", f" {choice}") for choice in ("no", "yes")],
        1,
    ),
    "piqa": (
        {"goal": "Put out a fire", "sol1": "Use oil. ", "sol2": "Use sand.", "label": 1},
        [("Question: Put out a fire\nAnswer:", " Use oil. "), ("Question: Put out a fire\nAnswer:", " Use sand.")],
        1,
    ),
    "social_iqa": (
        {
            **{"context": "Ann lit a fire.", "question": "Why?", "label": "3"},
            **{"answerA": "for fun", "answerB": "by chance", "answerC": "it was cold"},
        },
        [("Q: Ann lit a fire. Why?\nA:", f" {choice}") for choice in ("for fun", "by chance", "it was cold")],
        2,
    ),
    "hellaswag": (
        {
            **{
                "activity_label": "Camping",
                "ctx_a": "[header] A fire [title] burns.",
                "ctx_b": "the man",
                "label": "1",
            },
            "endings": ["sleeps.  He", " eats [step] now."],
        },
        [("Camping: A fire. burns. The man", " sleeps. He"), ("Camping: A fire. burns. The man", " eats now.")],
        1,
    ),
    "openbookqa": (
        {"question_stem": "Fire is", "choices": {"text": ["hot", "wet"], "label": ["A", "B"]}, "answerKey": " B"},
        [("Fire is", " hot"), ("Fire is", " wet")],
        1,
    ),
    "winogrande": (
        {"sentence": "The oil met the fire, and _ burned. ", "option1": "oil", "option2": "fire", "answer": "1"},
        [(f"The oil met the fire, and {option}", " burned.") for option in ("oil", "fire")],
        0,
    ),
    "lambada_openai": (
        {"text": "She lit the fire with the last drop of oil"},
        [("She lit the fire with the last drop of", " oil")],
        0,
    ),
}


@pytest.mark.parametrize("name", list(TASKS))
def test_prompts_are_the_harness_s(name):
    row, pairs, gold = ROWS[name]
    item = TASKS[name].read(row)
    assert item.pairs() == pairs
    assert item.gold == gold


FLAT = {
    "piqa": {"goal": "Put out a fire", "choices": ["Use oil. ", "Use sand."], "label": 1},
    "social_iqa": {
        **{"context": "Ann lit a fire.", "question": "Why?", "label": 2},
        "choices": ["for fun", "by chance", "it was cold"],
    },
    "winogrande": {"sentence": "The oil met the fire, and _ burned. ", "choices": ["oil", "fire"], "label": 0},
}


@pytest.mark.parametrize("name", list(FLAT))
def test_flat_rows_mean_the_same(name):
    assert TASKS[name].read(FLAT[name]) == TASKS[name].read(ROWS[name][0])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_items_are_read_from_rows_of_either_kind_and_compressed(tmp_path):
    plain = {"context": "Fire is", "choices": ["hot", "wet"], "gold": 0}
    each = {"context": ["Oil", "Sand"], "choices": ["burns", "burns"], "gold": 0}
    path = write(tmp_path / "items.jsonl", [plain, each, ROWS["piqa"][0]])
    items = read_items(path, task("piqa").read)
    assert items[:2] == [Item(("Fire is",), ("hot", "wet"), 0), Item(("Oil", "Sand"), ("burns", "burns"), 0)]
    packed = tmp_path / "items.jsonl.bz2"
    packed.write_bytes(bz2.compress(path.read_bytes()))
    assert read_items(packed, task("piqa").read) == items
    assert read_items(path, task("piqa").read, 1) == items[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"goal": "x"}, r"items.jsonl:1 has no field 'sol1'"),
        ({"context": "x", "choices": ["a", ""], "gold": 0}, "items.jsonl:1: an item without choices, or with an empty"),
        ({"context": "x", "choices": ["a", "b"], "gold": 2}, "the right choice is 2, of 2"),
        ({"context": ["x"] * 3, "choices": ["a", "b"], "gold": 0}, "3 contexts for 2 choices"),
        ({"context": "x", "choices": ["a", 3], "gold": 0}, r"items\.jsonl:1"),
        ({"context": 3, "choices": ["a", "b"], "gold": 0}, "no item of this task"),
        (["x"], "no item of this task"),
    ],
)
def test_rows_that_are_no_items_are_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_items(write(tmp_path / "items.jsonl", [row]), task("piqa").read)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.jsonl cannot be read"):
        read_items(tmp_path / "absent.jsonl", task("piqa").read)
    (tmp_path / "bad.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:1 is not JSON"):
        read_items(tmp_path / "bad.jsonl", task("piqa").read)
    with pytest.raises(DataError, match="has 1 items, and 5 were asked for"):
        read_items(write(tmp_path / "one.jsonl", [ROWS["piqa"][0]]), task("piqa").read, 5)
    with pytest.raises(DataError, match="has 0 items"):
        read_items(write(tmp_path / "none.jsonl", []), task("piqa").read)


def test_sentences_without_a_blank_and_other_answers_are_refused(tmp_path):
    path = write(tmp_path / "w.jsonl", [{**ROWS["winogrande"][0], "sentence": "no gap"}])
    with pytest.raises(DataError, match=r"no item of this task: no blank \(_\)"):
        read_items(path, task("winogrande").read)
    path = write(tmp_path / "b.jsonl", [{**ROWS["boolq"][0], "choices": ["yes", "no"]}])
    with pytest.raises(DataError, match=r"choices \['yes', 'no'\]"):
        read_items(path, task("boolq").read)


def test_unknown_tasks_are_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown task 'arc_esy'(.|\n)*arc_easy"):
        task("arc_esy")
