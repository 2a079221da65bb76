"""From a row of each task's data set to the prompt that lm-evaluation-harness 0.4 makes of it.

A row has its data set's own fields on the Hugging Face hub. Its answers may also be in the flat form of `choices`, a
list of strings, with `label`, the index of the right one from 0.
"""

import re
from collections.abc import Mapping
from typing import Any

from lowbit.evals.tasks.item import Item

Row = Mapping[str, Any]

_NO_YES = ("no", "yes")


def arc(row: Row) -> Item:
    """ARC, easy and challenge (arXiv 1803.05457)."""
    return _item(f"Question: {row['question']}\nAnswer:", row)


def boolq(row: Row) -> Item:
    """BoolQ (arXiv 1905.10044), in SuperGLUE's form."""
    if tuple(row.get("choices", _NO_YES)) != _NO_YES:
        raise ValueError(f"choices {row['choices']}, not {list(_NO_YES)}")
    return Item((f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:",), _NO_YES, int(row["label"]))


def piqa(row: Row) -> Item:
    """PIQA (arXiv 1911.11641)."""
    context = f"Question: {row['goal']}\nAnswer:"
    if "choices" in row:
        return _item(context, row)
    return Item((context,), (row["sol1"], row["sol2"]), row["label"])


def social_iqa(row: Row) -> Item:
    """Social IQa (arXiv 1904.09728); the data set counts its labels from 1."""
    context = f"Q: {row['context']} {row['question']}\nA:"
    if "choices" in row:
        return _item(context, row)
    return Item((context,), (row["answerA"], row["answerB"], row["answerC"]), int(row["label"]) - 1)


def hellaswag(row: Row) -> Item:
    """HellaSwag (arXiv 1905.07830), without the marks that WikiHow left in it."""
    context = _without_marks(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = row["choices"] if "choices" in row else row["endings"]
    return Item((context,), tuple(map(_without_marks, endings)), int(row["label"]))


def openbookqa(row: Row) -> Item:
    """OpenBookQA (arXiv 1809.02789): the question alone, without its book."""
    return _item(row["question_stem"], row)


def winogrande(row: Row) -> Item:
    """WinoGrande (arXiv 1907.10641): how likely the rest of the sentence is after each option (arXiv 1806.02847)."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise ValueError("no blank (_) in the sentence")
    if "choices" in row:
        options, gold = row["choices"], row["label"]
    else:
        options, gold = (row["option1"], row["option2"]), ("1", "2").index(row["answer"])
    return Item(tuple(before + option for option in options), (after.strip(),) * len(options), gold)


def lambada(row: Row) -> Item:
    """LAMBADA (arXiv 1606.06031) in OpenAI's form: the last word."""
    context, _, word = row["text"].rpartition(" ")
    return Item((context,), (word,), 0)


def _item(context: str, row: Row) -> Item:
    choices = row["choices"]
    if isinstance(choices, Mapping):
        return Item((context,), tuple(choices["text"]), list(choices["label"]).index(row["answerKey"].lstrip()))
    return Item((context,), tuple(choices), row["label"])


def _without_marks(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
