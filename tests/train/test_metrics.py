"""Lines of JSON: what a resumed run keeps, and what JSON can hold."""

import json

import pytest

from lowbit.train.metrics import JsonLines


def read(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_a_resumed_file_drops_later_and_unreadable_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 3.0}\n'
        + b"\0" * 24
        + b'\n{"step": 2, "loss": 2.0}\n\xff\xfe\n[3]\n{"loss": 1.5}\n{"step": 3}\n{"step": 2, "lo'
    )
    lines = JsonLines(path, after=2)
    lines.write({"step": 3, "loss": 1.0})
    lines.close()
    assert [row["step"] for row in read(path)] == [1, 2, 3]


def test_rows_of_the_same_step_and_text_are_one(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    rows = [(5, "a", 1.0), (5, "b", 2.0), (5, "a", 1.5), (9, "a", 1.0)]
    path.write_text("".join(json.dumps({"step": s, "text": t, "nll": n}) + "\n" for s, t, n in rows))
    lines = JsonLines(path, after=5)
    lines.close()
    assert lines.keys == {(5, "a"), (5, "b")}
    assert {(row["text"], row["nll"]) for row in read(path)} == {("a", 1.5), ("b", 2.0)}


def test_numbers_that_json_has_not_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, after=0)
    lines.write({"step": 1, "perplexity": float("inf"), "nll": float("nan"), "parts": (1.0, float("-inf"))})
    lines.close()
    assert read(path) == [{"step": 1, "perplexity": None, "nll": None, "parts": [1.0, None]}]


def test_other_processes_read_and_do_not_write(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    text = '{"step": 1, "text": "a"}\n{"step": 9, "text": "a"}\n'
    path.write_text(text)
    lines = JsonLines(path, after=1, writes=False)
    lines.write({"step": 2})
    lines.close()
    assert lines.keys == {(1, "a")}
    assert path.read_text() == text
