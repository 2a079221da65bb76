import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.data import TokenDataset, TokenWindows, order
from lowbit.data.order import epoch_order, feistel

KEYS = np.arange(6, dtype=np.uint64)


@given(n=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
@settings(deadline=None)
def test_the_network_permutes_any_number_of_places(n, keys):
    images = feistel(np.array(keys, np.uint64), n, np.arange(n))
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(n))


def test_a_place_is_the_same_whichever_others_are_asked_for():
    whole = feistel(KEYS, 1000, np.arange(1000))
    for places in ([3], [999, 0, 5], range(17, 400, 31)):
        np.testing.assert_array_equal(feistel(KEYS, 1000, np.array(places)), whole[list(places)])


def test_the_order_is_as_even_as_that_of_numpy():
    """Each of 16 parts of the places is spread evenly over 16 parts of the windows."""
    n = 1 << 16
    counts, _, _ = np.histogram2d(np.arange(n), feistel(KEYS, n, np.arange(n)), bins=16)
    # 225 degrees of freedom: chi squared is 225 with deviation sqrt(450) = 21; five deviations.
    chi2 = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert 225 - 106 < chi2 < 225 + 106
    # Neighbours do not stay neighbours: a difference of 1 is one of 2 (n - 1) / n^2 pairs, two of the n at the mean.
    assert (np.abs(np.diff(feistel(KEYS, n, np.arange(n)))) == 1).sum() < 12


def test_a_thousand_billion_windows_take_no_memory():
    n = 10**12
    tracemalloc.start()
    places = np.arange(5 * 10**11, 5 * 10**11 + 256)
    images = epoch_order(0, 0, n, places)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    assert len(set(images.tolist())) == 256
    assert 0 <= images.min() < images.max() < n
    assert images.std() > 0.2 * n  # a uniform one has n / sqrt(12)


def test_epochs_and_seeds_have_orders_of_their_own(monkeypatch):
    monkeypatch.setattr(order, "SHUFFLED_WHOLE", 10)
    places = np.arange(50)
    orders = {tuple(epoch_order(seed, epoch, 50, places)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("whole", [0, 1 << 22])
def test_batches_of_several_epochs_visit_every_window_once_each(monkeypatch, whole):
    monkeypatch.setattr(order, "SHUFFLED_WHOLE", whole)
    data = TokenDataset(TokenWindows((np.arange(3 * 11 + 1, dtype=np.uint16),), 3), 4, seed=5)
    stream = np.concatenate([data.indices(step) for step in range(11)])  # four epochs of eleven
    for epoch in stream.reshape(4, 11):
        assert sorted(epoch) == list(range(11))
    assert len({tuple(epoch) for epoch in stream.reshape(4, 11)}) == 4
