"""Batches of chosen windows: which, in which order, and what is refused."""

import numpy as np
import pytest

from lowbit.data import TokenWindows
from lowbit.data.coreset import CoresetDataset
from lowbit.errors import DataError

WINDOWS = TokenWindows((np.arange(81, dtype=np.uint16),), 4)  # 20 of them


def coreset(folder, **changes):
    fields = {"batch_size": 4, "seed": 3, "folder": folder / "coresets", "chosen": 6, "every": 3, "rule": "error"}
    return CoresetDataset(WINDOWS, **(fields | changes))


def test_a_period_reads_the_windows_of_highest_score_each_as_often_as_the_others(tmp_path):
    data = coreset(tmp_path)
    scores = np.random.default_rng(0).random((2, 20))
    scores[1, 4:] = 0.5  # many alike: the first of them count
    data.choose(0, scores[0])
    data.choose(3, scores[1])
    for period, own in enumerate(scores):
        read = np.concatenate([data.indices(3 * period + step) for step in range(3)])
        numbers, counts = np.unique(read, return_counts=True)
        assert numbers.tolist() == sorted(sorted(range(20), key=lambda i, own=own: (-own[i], i))[:6])
        assert counts.tolist() == [2] * 6  # 12 rows are two epochs
        assert set(read[:6].tolist()) == set(numbers.tolist())
    first = [data.indices(step).tolist() for step in range(6)]
    again = coreset(tmp_path)
    assert [again.indices(step).tolist() for step in (5, 0, 3)] == [first[step] for step in (5, 0, 3)]
    np.testing.assert_array_equal(data.batch(4), WINDOWS[data.indices(4)])
    halves = [coreset(tmp_path, process_index=share, process_count=2).batch(4) for share in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), data.batch(4))


def test_periods_and_seeds_have_orders_of_their_own(tmp_path):
    data = coreset(tmp_path)
    for step in (0, 3):
        data.choose(step, np.arange(20.0))
    orders = {tuple(np.concatenate([data.indices(step + i) for i in range(3)]).tolist()) for step in (0, 3)}
    other = coreset(tmp_path, seed=4)
    orders.add(tuple(np.concatenate([other.indices(i) for i in range(3)]).tolist()))
    assert len(orders) == 3
    assert {number for order in orders for number in order} == set(range(14, 20))


def test_equal_scores_choose_the_first_windows(tmp_path):
    data = coreset(tmp_path)
    data.choose(0, np.zeros(20))
    assert set(np.concatenate([data.indices(step) for step in range(3)]).tolist()) == set(range(6))


def test_a_choice_that_is_made_again_counts(tmp_path):
    data = coreset(tmp_path)
    for scores in (np.arange(20.0), -np.arange(20.0)):
        data.choose(0, scores)
        chosen = set(np.argsort(-scores)[:6].tolist())
        assert {int(number) for step in range(3) for number in data.indices(step)} == chosen


def test_fingerprints_know_how_windows_are_chosen(tmp_path):
    changes = ({}, {"chosen": 7}, {"every": 4}, {"rule": "mixed"}, {"seed": 4})
    assert len({coreset(tmp_path, **change).fingerprint() for change in changes}) == len(changes)
    assert coreset(tmp_path).fingerprint() == coreset(tmp_path / "elsewhere").fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": 0}, "a coreset of 0 of 20 windows\n  -> choose at least 1"),
        ({"chosen": 21}, "a coreset of 21 of 20 windows"),
        ({"every": 0}, "chosen anew every 0 steps\n  -> give at least 1"),
        ({"subset": (1, 2)}, "a subset is given\n  -> leave the subset out"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        coreset(tmp_path, **changes)


def test_scores_and_choices_that_are_none_are_refused(tmp_path):
    data = coreset(tmp_path)
    with pytest.raises(DataError, match="scores of shape \\(19,\\) for 20 windows"):
        data.choose(0, np.zeros(19))
    with pytest.raises(DataError, match="give each window a score"):
        data.choose(0, np.full(20, np.nan))
    with pytest.raises(DataError, match=r"no choice of windows at .*3\.npy\n  -> resume the run"):
        data.indices(4)
    with pytest.raises(DataError, match="count steps from 0"):
        data.indices(-1)
    data.folder.mkdir()
    np.save(data.place(7), np.arange(5))
    with pytest.raises(DataError, match=r"6\.npy names 5 windows, not 6\n  -> remove it"):
        data.indices(8)
