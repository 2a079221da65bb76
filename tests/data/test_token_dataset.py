import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.data import TokenDataset, TokenWindows
from lowbit.errors import DataError


def windows(n, length=3):
    """n windows whose first token is the window's number times the length."""
    return TokenWindows((np.arange(n * length + 1, dtype=np.uint32),), length)


def numbers(batch, length=3):
    return (batch[:, 0] // length).tolist()


@given(n=st.integers(1, 20), batch_size=st.integers(1, 25), seed=st.integers(0, 5), epochs=st.integers(1, 4))
@settings(deadline=None)
def test_every_epoch_visits_every_window_once_and_follows_without_a_gap(n, batch_size, seed, epochs):
    data = TokenDataset(windows(n), batch_size, seed)
    steps = -(-epochs * n // batch_size)
    stream = [i for step in range(steps) for i in numbers(data.batch(step))]
    for epoch in range(epochs):
        visited = stream[epoch * n : (epoch + 1) * n]
        assert visited == np.random.default_rng(seed + epoch).permutation(n).tolist()
        assert sorted(visited) == list(range(n))


@given(rows=st.integers(1, 4), processes=st.integers(1, 4), step=st.integers(0, 9), n=st.integers(1, 9))
@settings(deadline=None)
def test_the_slices_of_all_processes_tile_the_batch(rows, processes, step, n):
    whole = TokenDataset(windows(n), rows * processes)
    parts = [
        TokenDataset(windows(n), rows * processes, process_index=p, process_count=processes).batch(step)
        for p in range(processes)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole.batch(step))


def test_a_batch_depends_on_the_step_alone():
    data = TokenDataset(windows(10), 4, seed=3)
    forward = [data.batch(s) for s in range(9)]
    for s in (8, 0, 5, 5, 2):
        np.testing.assert_array_equal(data.batch(s), forward[s])
    assert data.batch(0).dtype == np.int32
    assert data.batch(0).shape == (4, 4)


def test_a_process_reads_only_its_own_rows():
    class Recorder(np.ndarray):
        starts: tuple[int, ...] = ()

        def __getitem__(self, key):
            if isinstance(key, slice) and key.start is not None:
                Recorder.starts += (key.start,)
            return super().__getitem__(key)

    recorded = TokenWindows((np.arange(31, dtype=np.uint16).view(Recorder),), 3)
    data = TokenDataset(recorded, 8, process_index=2, process_count=4)
    data.batch(0)
    assert list(Recorder.starts) == (data.indices(0)[4:6] * 3).tolist()


def test_a_subset_is_shuffled_as_if_it_were_all():
    subset = (7, 1, 4, 2)
    data = TokenDataset(windows(9), 4, seed=1, subset=subset)
    order = np.random.default_rng(1).permutation(4)
    assert numbers(data.batch(0)) == [subset[i] for i in order]
    assert data.epoch_windows == 4
    assert TokenDataset(windows(9), 4).epoch_windows == 9
    assert data.tokens_per_batch == 12


def test_fingerprint_holds_what_fixes_the_order_and_not_who_reads_it():
    base = TokenDataset(windows(9), 4).fingerprint()
    assert TokenDataset(windows(9), 4, process_index=1, process_count=2).fingerprint() == base
    others = [
        TokenDataset(windows(9), 8),
        TokenDataset(windows(9), 4, seed=1),
        TokenDataset(windows(9), 4, subset=(1, 2)),
        TokenDataset(windows(8), 4),
    ]
    assert len({base, *(d.fingerprint() for d in others)}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch of 6 rows cannot be shared by 4 processes"),
        ({"batch_size": 0}, "batch of 0 rows"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process 2 of 2 does not exist"),
        ({"batch_size": 4, "seed": -1}, "a seed of -1"),
        ({"batch_size": 4, "subset": ()}, "subset is empty or names a window twice"),
        ({"batch_size": 4, "subset": (1, 1)}, "names a window twice"),
        ({"batch_size": 4, "subset": (0, 9)}, "reaches from 0 to 9, the data from 0 to 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        TokenDataset(windows(9), **settings)


def test_a_step_before_the_first_is_refused():
    with pytest.raises(DataError, match="step -1"):
        TokenDataset(windows(9), 4).batch(-1)
