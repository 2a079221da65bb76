import numpy as np
import pytest

from lowbit.data import TokenWindows
from lowbit.errors import DataError


@pytest.fixture
def write(tmp_path):
    def _write(name, tokens):
        np.save(tmp_path / name, tokens)
        return tmp_path / name

    return _write


def test_window_i_is_the_slice_that_the_definition_says(write):
    t = np.arange(23, dtype=np.uint16)
    windows = TokenWindows.open(write("a.npy", t), length=4, vocab_size=23)
    assert len(windows) == (23 - 1) // 4
    for i in range(len(windows)):
        np.testing.assert_array_equal(windows[i], t[i * 4 : i * 4 + 5])
    assert windows[0].dtype == np.int32
    np.testing.assert_array_equal(windows[1:3], np.stack([windows[1], windows[2]]))
    np.testing.assert_array_equal(windows[[3, 0]], np.stack([windows[3], windows[0]]))
    assert len(list(windows)) == len(windows)


@pytest.mark.parametrize(("tokens", "count"), [(5, 1), (8, 1), (9, 2)])
def test_a_window_counts_only_when_its_last_target_exists(tokens, count):
    assert len(TokenWindows((np.zeros(tokens, np.uint16),), 4)) == count


def test_no_window_spans_two_files_and_numbers_run_through_them(write):
    a, b = np.arange(10, dtype=np.uint16), np.arange(100, 111, dtype=np.uint32)
    windows = TokenWindows.open([write("a.npy", a), write("b.npy", b)], length=3, vocab_size=111)
    expected = [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [100, 101, 102, 103], [103, 104, 105, 106]]
    np.testing.assert_array_equal(windows[:5], expected)
    assert len(windows) == 6


def test_a_window_outside_is_an_index_error():
    windows = TokenWindows((np.zeros(9, np.uint16),), 4)
    with pytest.raises(IndexError, match="window 2 of 2"):
        windows[2]
    with pytest.raises(IndexError, match="window -1 of 2"):
        windows[-1]


def test_files_are_mapped_not_read(write):
    windows = TokenWindows.open(write("a.npy", np.zeros(50, np.uint16)), length=4, vocab_size=1)
    assert isinstance(windows.arrays[0], np.memmap)


def test_fingerprint_knows_content_sizes_and_window_length_but_no_paths(write):
    t = np.arange(500, dtype=np.uint16)
    print_of = lambda name, tokens, length=4: TokenWindows.open(  # noqa: E731
        write(name, tokens), length=length, vocab_size=501
    ).fingerprint()
    same = print_of("a.npy", t)
    assert print_of("b.npy", t) == same
    changed = t.copy()
    changed[250] = 0
    assert len({same, print_of("c.npy", changed), print_of("d.npy", t[:-1]), print_of("a.npy", t, 5)}) == 4
    assert print_of("e.npy", t.astype(np.uint32)) != same


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(0, np.uint16), r"a\.npy holds 0 tokens, and a window of 4 needs at least T\+1 = 5"),
        (np.zeros(4, np.uint16), r"holds 4 tokens.*needs at least T\+1 = 5\n  -> give more text"),
        (np.zeros(9, np.int64), r"holds int64 \[9\], not a one-dimensional uint16 or uint32 array"),
        (np.zeros(9, np.float32), r"holds float32 \[9\].*\n  -> write token ids with numpy.save"),
        (np.zeros((3, 9), np.uint16), r"holds uint16 \[3, 9\], not a one-dimensional"),
        (np.array([1, 2, 9, 9, 1], np.uint16), r"a\.npy holds token 9 at position 2, outside of the vocabulary of 9"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused(write, tokens, message):
    with pytest.raises(DataError, match=message):
        TokenWindows.open(write("a.npy", tokens), length=4, vocab_size=9)


def test_a_short_array_goes_by_its_name():
    arrays = (np.zeros(9, np.uint16), np.zeros(4, np.uint16))
    with pytest.raises(DataError, match=r"^short\.txt holds 4 tokens"):
        TokenWindows(arrays, 4, names=("long.txt", "short.txt"))
    with pytest.raises(DataError, match=r"^token array 1 holds 4 tokens"):
        TokenWindows(arrays, 4)


def test_a_bad_id_is_found_in_any_block(write, monkeypatch):
    monkeypatch.setattr("lowbit.data.tokens._SCAN_TOKENS", 8)
    tokens = np.zeros(30, np.uint16)
    tokens[21] = 7
    with pytest.raises(DataError, match=r"token 7 at position 21"):
        TokenWindows.open(write("a.npy", tokens), length=4, vocab_size=7)


def test_files_that_are_missing_or_no_arrays_are_refused(tmp_path, write):
    with pytest.raises(DataError, match=r"no token file at .*none\.npy"):
        TokenWindows.open(tmp_path / "none.npy", length=4, vocab_size=9)
    (tmp_path / "text.npy").write_text("It was the best of times")
    with pytest.raises(DataError, match=r"text\.npy cannot be read as an \.npy array"):
        TokenWindows.open(tmp_path / "text.npy", length=4, vocab_size=9)
    whole = write("cut.npy", np.zeros(99, np.uint16)).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.npy cannot be read"):
        TokenWindows.open(tmp_path / "cut.npy", length=4, vocab_size=9)
    np.savez(tmp_path / "many.npz", a=np.zeros(9, np.uint16))
    with pytest.raises(DataError, match=r"many\.npz holds an archive"):
        TokenWindows.open(tmp_path / "many.npz", length=4, vocab_size=9)
    with pytest.raises(DataError, match="no token files"):
        TokenWindows.open([], length=4, vocab_size=9)
    with pytest.raises(DataError, match="windows of 0 tokens"):
        TokenWindows((np.zeros(9, np.uint16),), 0)
