"""Windows as papers cut them: overlapping ones, and those in which WikiText-2 is reported."""

import bz2
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowbit.data import TextTokenizer
from lowbit.errors import DataError

PAPERS_LENGTH = 2048
"""Tokens in a window of GPTQ (arXiv 2210.17323), and of the papers that compare themselves with it."""


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class OverlappingWindows:
    """Windows of T + 1 tokens, `stride` apart: window i is `t[i*stride : i*stride+T+1]`.

    Each window's last `stride` predictions are new; with `evaluate(..., counted=stride)` every token but the first is
    predicted once, and all but the first window's with at least T - stride tokens before it.

    Attributes:
      tokens: one stream, int[n].
      length: T, predictions in a window.
      stride: new predictions in a window, 1 to T.
    """

    tokens: NDArray[np.integer]
    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise DataError(
                f"a stride of {self.stride} for windows of {self.length} predictions",
                "ask for 1 up to the window's length",
            )
        if len(self.tokens) <= self.length:
            raise DataError(
                f"{len(self.tokens):,} tokens are no window of {self.length + 1:,}", "give more text or shorter windows"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1 - self.length) // self.stride + 1

    def __getitem__(self, index: slice, /) -> NDArray[np.int32]:
        starts = np.arange(len(self))[index] * self.stride
        return self.tokens[starts[:, None] + np.arange(self.length + 1)].astype(np.int32)


def papers_windows(path: str | Path, tokenizer: TextTokenizer, length: int = PAPERS_LENGTH) -> NDArray[np.int32]:
    """Returns WikiText-2 (raw) as GPTQ and the papers after it cut it, i32[n length].

    Lines are joined by blank lines, as the data set's rows are; the text is encoded as one document with the special
    tokens that `tokenizer.json` adds, and cut into windows of `length` tokens that share none. The first token of each
    is not predicted, the rest at the end is left out.

    Args:
      path: `wiki.test.raw` or `wiki.valid.raw` by any name, also .gz or .bz2.
      tokenizer: of the model.
      length: tokens in a window, so one more than it has predictions.

    Raises:
      DataError: the file cannot be read, or is shorter than a window.
    """
    try:
        text = _read(Path(path))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "check the path, and that it is text in UTF-8") from error
    tokens = tokenizer.backend.encode("\n\n".join(_rows(text.splitlines(keepends=True))), add_special_tokens=True).ids
    count = len(tokens) // length
    if count == 0 or length < 2:
        raise DataError(
            f"{path} has {len(tokens):,} tokens, and a window {length:,}", "give more text, or windows of 2 or more"
        )
    return np.array(tokens[: count * length], np.int32).reshape(count, length)


def _rows(lines: Sequence[str]) -> list[str]:
    """The data set's rows: a line with nothing but spaces is an empty one, any other keeps its end."""
    return [line if line.strip() else "" for line in lines]


def _read(path: Path) -> str:
    opened = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        return str(file.read())
