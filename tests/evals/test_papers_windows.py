import bz2
from pathlib import Path

import numpy as np
import pytest

from lowbit.data import TextTokenizer
from lowbit.errors import DataError
from lowbit.evals import evaluate
from lowbit.evals.windows import OverlappingWindows, papers_windows

MODEL = Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model"
VOCAB = 13
NATS = np.random.default_rng(0).random((VOCAB, VOCAB)).astype(np.float32)


def nll(batch):
    return NATS[batch[:, :-1], batch[:, 1:]]


@pytest.mark.parametrize(("length", "stride", "batch_size"), [(8, 3, 4), (8, 8, 2), (5, 1, 7), (8, 3, 1)])
def test_overlapping_windows_predict_every_token_once(length, stride, batch_size):
    stream = np.random.default_rng(1).integers(0, VOCAB, 40).astype(np.uint16)
    windows = OverlappingWindows(stream, length, stride)
    got = evaluate(nll, windows, batch_size=batch_size, counted=stride, byte_lengths=np.ones(VOCAB, np.int64))
    covered = length + (len(windows) - 1) * stride  # predictions up to the last full window
    assert 40 - 1 - covered < stride
    assert got.tokens == got.bytes == covered
    used = stream.astype(np.int64)[: covered + 1]
    assert got.nll == pytest.approx(NATS[used[:-1], used[1:]].astype(np.float64).mean(), rel=1e-12)


def test_context_that_is_not_counted_does_not_count_in_the_error_either():
    stream = np.zeros(40, np.uint16)
    assert evaluate(nll, OverlappingWindows(stream, 8, 3), batch_size=3, counted=3).stderr == pytest.approx(
        0, abs=1e-12
    )


def test_windows_that_cannot_overlap_so_are_refused():
    for stride in (0, 9):
        with pytest.raises(DataError, match=f"a stride of {stride} for windows of 8"):
            OverlappingWindows(np.zeros(40, np.uint16), 8, stride)
    with pytest.raises(DataError, match="8 tokens are no window of 9"):
        OverlappingWindows(np.zeros(8, np.uint16), 8, 2)
    with pytest.raises(DataError, match="9 new predictions in windows of 8"):
        evaluate(nll, np.zeros((2, 9), np.int32), batch_size=2, counted=9)
    with pytest.raises(ValueError, match=r"nll_fn returned shape \[2\]"):
        evaluate(lambda b: np.zeros(2), np.zeros((2, 9), np.int32), batch_size=1, counted=3)


def test_papers_join_lines_by_blank_lines_and_share_no_token(tmp_path):
    tokenizer = TextTokenizer.load(MODEL)
    lines = [" \n", " = The Sea = \n", " \n", " The ship lay in the bay . \n"] * 6
    (tmp_path / "wiki.valid.raw").write_text("".join(lines), encoding="utf-8", newline="\n")
    (tmp_path / "wiki.txt.bz2").write_bytes(bz2.compress("".join(lines).encode()))
    rows = ["", " = The Sea = \n", "", " The ship lay in the bay . \n"] * 6
    (ids,) = tokenizer.encode(["\n\n".join(rows)])
    got = papers_windows(tmp_path / "wiki.valid.raw", tokenizer, 16)
    assert got.ravel().tolist() == ids[: len(ids) // 16 * 16]
    assert np.array_equal(papers_windows(tmp_path / "wiki.txt.bz2", tokenizer, 16), got)
    with pytest.raises(DataError, match=r"tokens, and a window 2,048"):
        papers_windows(tmp_path / "wiki.valid.raw", tokenizer)
    with pytest.raises(DataError, match=r"absent\.raw cannot be read"):
        papers_windows(tmp_path / "absent.raw", tokenizer)
