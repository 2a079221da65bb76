import math
from pathlib import Path

import numpy as np
import pytest

from lowbit.data import TextTokenizer
from lowbit.errors import DataError
from lowbit.evals.encoding import encode_pairs
from lowbit.evals.scoring import Likelihood
from lowbit.evals.tasks import Item, evaluate_task, task

MODEL = Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model"


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.load(MODEL)


class Told:
    """A scorer that answers what it was told, whatever is asked."""

    def __init__(self, *nats, greedy=()):
        self.answers = [Likelihood(-value, i in greedy) for i, value in enumerate(nats)]

    def log_likelihoods(self, requests):
        assert len(requests) == len(self.answers)
        return self.answers


def test_accuracies_divide_by_characters_and_by_bytes(tokenizer):
    # Characters 4, 4 and 8; bytes 4, 8 and 8.
    items = [Item(("Fire is",), ("wets", "ÄÄÄÄ", "very hot"), gold) for gold in (0, 1, 2)]
    nats = (7.0, 9.0, 15.0)  # a character: 1.75, 2.25, 1.875; a byte: 1.75, 1.125, 1.875
    got = evaluate_task(Told(*nats * 3), tokenizer, 0, task("piqa"), items)
    assert got.samples["acc"].tolist() == [1.0, 0.0, 0.0]
    assert got.samples["acc_norm"].tolist() == [1.0, 0.0, 0.0]
    assert got.samples["acc_bytes"].tolist() == [0.0, 1.0, 0.0]
    assert got.log_likelihoods == ((-7.0, -9.0, -15.0),) * 3
    assert got.metrics["acc"].value == pytest.approx(1 / 3)
    assert got.metrics["acc"].stderr == pytest.approx(math.sqrt((1 / 3) * (2 / 3) / 2))  # n - 1 in the variance


def test_the_first_of_equal_choices_is_taken_and_boolq_has_one_metric(tokenizer):
    got = evaluate_task(Told(2.0, 2.0), tokenizer, 0, task("boolq"), [Item(("Q",), ("no", "yes"), 0)])
    assert {name: (m.value, m.stderr) for name, m in got.metrics.items()} == {"acc": (1.0, None)}


def test_lambada_asks_for_the_greedy_word_and_its_perplexity(tokenizer):
    items = [Item(("the last drop of",), ("oil",), 0)] * 3
    got = evaluate_task(Told(1.0, 2.0, 6.0, greedy=(1,)), tokenizer, 0, task("lambada_openai"), items)
    assert got.samples["acc"].tolist() == [0.0, 1.0, 0.0]
    perplexity = got.metrics["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(3.0))
    assert perplexity.stderr == pytest.approx(math.exp(3.0) * np.std([1.0, 2.0, 6.0], ddof=1) / math.sqrt(3))


def test_items_of_another_kind_of_task_are_refused(tokenizer):
    one, two = Item(("Fire is",), ("hot",), 0), Item(("Fire is",), ("hot", "wet"), 0)
    with pytest.raises(DataError, match="an item of piqa with 1 choices"):
        evaluate_task(Told(), tokenizer, 0, task("piqa"), [two, one])
    with pytest.raises(DataError, match="an item of lambada_openai with 2 choices"):
        evaluate_task(Told(), tokenizer, 0, task("lambada_openai"), [two])
    with pytest.raises(DataError, match="no items of piqa"):
        evaluate_task(Told(), tokenizer, 0, task("piqa"), [])


def test_pairs_are_cut_where_the_context_ends(tokenizer):
    (whole,), (context,) = tokenizer.encode(["The ship lay in the bay"]), tokenizer.encode(["The ship lay in"])
    for pair in (("The ship lay in", " the bay"), ("The ship lay in ", "the bay")):  # spaces move over
        (request,) = encode_pairs(tokenizer, [pair], 7)
        assert request == (tuple(context), tuple(whole[len(context) :]))


def test_an_empty_context_is_the_token_between_documents(tokenizer):
    (alone,) = tokenizer.encode(["The ship"])
    assert encode_pairs(tokenizer, [("", "The ship")], 7) == [((7,), tuple(alone))]
    assert encode_pairs(tokenizer, [("", "The ship")], alone[0]) == [((alone[0],), tuple(alone[1:]))]
    with pytest.raises(DataError, match="adds no token"):
        encode_pairs(tokenizer, [("The ship", "")], 7)
