"""Token files as windows, and the order in which training visits them.

`TokenWindows` says what window i is; `TokenDataset` says which windows are in batch s. Both are pure functions of
their fields: a run that resumes at step s reads what it would have read, and the data position is the step itself.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowbit.data.order import endless_order
from lowbit.errors import DataError

Tokens = NDArray[np.unsignedinteger]  # uint16 or uint32

_SCAN_TOKENS = 1 << 22  # tokens looked at together when ids are checked: bounds memory, not the result
_SAMPLE_TOKENS = 1 << 16  # head, middle and tail of a file that the fingerprint reads


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class TokenWindows:
    """Windows of T + 1 tokens over one or several token arrays, T apart: window i is `t[i*T : i*T+T+1]`.

    A window's last token is the next one's first, so that every token but a file's first is predicted once. No
    window spans two files; windows are numbered through the files in order. It is a sequence: `len(windows)`,
    `windows[i]`, `windows[a:b]` and `windows[indices]` read just those windows, as int32 `[... T+1]`.

    Attributes:
      arrays: the tokens, uint16 or uint32, one `[n]` a file, memory-mapped when opened from files.
      length: T, the number of predictions in a window.
      names: what messages call the arrays, such as their files; none numbers them.
    """

    arrays: tuple[Tokens, ...]
    length: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError(f"windows of {self.length} tokens", "ask for at least 1")
        names = self.names or tuple(f"token array {number}" for number in range(len(self.arrays)))
        for name, tokens in zip(names, self.arrays, strict=True):
            _check_length(tokens, self.length, name)
        if not self.arrays:
            raise DataError("no token files", "name at least one")

    @classmethod
    def open(cls, paths: str | Path | Iterable[str | Path], *, length: int, vocab_size: int) -> "TokenWindows":
        """Maps `.npy` files into memory and checks them, ids included.

        Args:
          paths: one or several files, each a one-dimensional uint16 or uint32 array.
          length: T, predictions in a window.
          vocab_size: the model's vocabulary; every id must be below it.

        Raises:
          DataError: a file is missing, no token array, too short, or holds an id outside the vocabulary.
        """
        places = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        return cls(tuple(open_tokens(place, vocab_size) for place in places), length, tuple(map(str, places)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
        if isinstance(index, int | np.integer):
            return self._read(int(index))
        wanted = range(len(self))[index] if isinstance(index, slice) else index
        out = np.empty((len(wanted), self.length + 1), np.int32)
        for row, window in enumerate(wanted):
            out[row] = self._read(int(window))
        return out

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Number of windows in all files up to and with each, `[files]`."""
        return np.cumsum([(len(tokens) - 1) // self.length for tokens in self.arrays])

    def _read(self, window: int) -> NDArray[np.int32]:
        ends = self._ends
        if not 0 <= window < ends[-1]:
            raise IndexError(f"window {window} of {ends[-1]}")
        file = int(np.searchsorted(ends, window, side="right"))
        start = (window - (int(ends[file - 1]) if file else 0)) * self.length
        return self.arrays[file][start : start + self.length + 1].astype(np.int32)

    def fingerprint(self) -> str:
        """Returns a SHA-256 over window length, sizes, types and samples of every array (not over paths)."""
        digest = hashlib.sha256(f"windows of {self.length}".encode())
        for tokens in self.arrays:
            digest.update(f"{tokens.dtype.str} {len(tokens)}".encode())
            middle = max(0, len(tokens) // 2 - _SAMPLE_TOKENS // 2)
            for start in (0, middle, max(0, len(tokens) - _SAMPLE_TOKENS)):
                digest.update(np.ascontiguousarray(tokens[start : start + _SAMPLE_TOKENS]).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """Shuffled batches of windows: `batch(step)` depends on nothing but the fields and the step.

    Epoch e visits the n windows in the order of `epoch_order`, each once: up to 2^22 windows that is
    `numpy.random.default_rng(seed + e).permutation(n)`, and beyond an order that takes no memory. The epochs follow
    each other without a gap: batch s holds places s*B to s*B + B - 1 of that endless order, so a batch may begin in one
    epoch and end in the next.

    Attributes:
      windows: where the tokens are.
      batch_size: B, rows of a batch over all processes.
      seed: of the order.
      subset: indices of the windows to use, None for all; place i of the order is then `subset[i]`.
      process_index: which slice of each batch this process reads: rows index*B/count to (index+1)*B/count.
      process_count: number of processes; divides B.
    """

    windows: TokenWindows
    batch_size: int
    seed: int = 0
    subset: tuple[int, ...] | None = None
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.process_count < 1 or self.batch_size % self.process_count:
            raise DataError(
                f"a batch of {self.batch_size} rows cannot be shared by {self.process_count} processes",
                "make the batch size a positive multiple of the number of processes",
            )
        if not 0 <= self.process_index < self.process_count:
            raise DataError(
                f"process {self.process_index} of {self.process_count} does not exist",
                "number the processes from 0",
            )
        if self.seed < 0:
            raise DataError(f"a seed of {self.seed}", "give a seed of 0 or more")
        if self.subset is not None:
            if not self.subset or len(set(self.subset)) < len(self.subset):
                raise DataError("the window subset is empty or names a window twice", "name each window once")
            if min(self.subset) < 0 or max(self.subset) >= len(self.windows):
                raise DataError(
                    f"the window subset reaches from {min(self.subset)} to {max(self.subset)}, the data from 0 to "
                    f"{len(self.windows) - 1}",
                    "name windows that exist",
                )

    @property
    def epoch_windows(self) -> int:
        """Number of windows in an epoch."""
        return len(self.windows) if self.subset is None else len(self.subset)

    @property
    def tokens_per_batch(self) -> int:
        """Number of predictions in a batch over all processes."""
        return self.batch_size * self.windows.length

    def indices(self, step: int) -> NDArray[np.int64]:
        """Returns the windows of a batch over all processes, `[B]`."""
        if step < 0:
            raise DataError(f"a batch for step {step}", "count steps from 0")
        places = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        order = endless_order(self.seed, 0, self.epoch_windows, places)
        return order if self.subset is None else np.asarray(self.subset, np.int64)[order]

    def batch(self, step: int) -> NDArray[np.int32]:
        """Returns this process's rows of batch `step`, int32 `[B/process_count T+1]`; reads no other rows."""
        rows = self.batch_size // self.process_count
        first = self.process_index * rows
        return self.windows[self.indices(step)[first : first + rows]]

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the tokens and of all that fixes the order, for checkpoints.

        The number of processes is left out: a run may go on with another.
        """
        order = json.dumps([self.batch_size, self.seed, self.subset])
        return hashlib.sha256(f"{self.windows.fingerprint()} {order}".encode()).hexdigest()


def open_tokens(path: Path, vocab_size: int) -> Tokens:
    """Maps a file of tokens into memory and checks every id; raises DataError as `TokenWindows.open`."""
    tokens = map_tokens(path)
    _check_ids(tokens, vocab_size, str(path))
    return tokens


def map_tokens(path: Path) -> Tokens:
    """Maps a file of tokens into memory, uint16 or uint32 `[n]`; raises DataError where it is none."""
    if not path.is_file():
        raise DataError(f"no token file at {path}", "check the path, or make the file from text first")
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an .npy array: {error}", "make the file again") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else "an archive"
        raise DataError(
            f"{path} holds {found}, not a one-dimensional uint16 or uint32 array",
            "write token ids with numpy.save, as uint16 or uint32",
        )
    return tokens


def _check_length(tokens: Tokens, length: int, place: str) -> None:
    if len(tokens) < length + 1:
        raise DataError(
            f"{place} holds {len(tokens):,} tokens, and a window of {length:,} needs at least T+1 = {length + 1:,}",
            "give more text or a smaller window",
        )


def _check_ids(tokens: Tokens, vocab_size: int, place: str) -> None:
    for start in range(0, len(tokens), _SCAN_TOKENS):
        block = tokens[start : start + _SCAN_TOKENS]
        if block.max() >= vocab_size:
            at = start + int(np.argmax(block >= vocab_size))
            raise DataError(
                f"{place} holds token {int(tokens[at])} at position {at:,}, outside of the vocabulary of "
                f"{vocab_size:,}",
                "encode the text with this model's tokenizer",
            )
