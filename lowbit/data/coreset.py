"""Training on chosen windows, others after every so many steps: which they are stands in files beside the run.

A choice depends on the model as it was then, so it cannot be a function of the step alone. Written down, it makes one:
with the file of its period a batch is what it was, whether the run was stopped since or not.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowbit.atomic import replacing
from lowbit.data.order import endless_order
from lowbit.data.tokens import TokenDataset
from lowbit.errors import DataError


@dataclass(frozen=True, eq=False, kw_only=True)
class CoresetDataset(TokenDataset):
    """A `TokenDataset` that reads, in each period of steps, the windows that were chosen at its start.

    Within a period they are visited as all windows of a `TokenDataset` are, in an order of its own.

    Attributes:
      folder: where choices stand, `STEP.npy` each, i64 `[chosen]`, ascending.
      chosen: number of windows in a choice.
      every: steps of a period.
      rule: how windows are chosen, in words: part of the fingerprint.

    Raises:
      DataError: a number out of range, or a subset besides.
    """

    folder: Path
    chosen: int
    every: int
    rule: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset is not None:
            raise DataError("a coreset is chosen of all windows, and a subset is given", "leave the subset out")
        if not 1 <= self.chosen <= len(self.windows):
            raise DataError(f"a coreset of {self.chosen} of {len(self.windows)} windows", "choose at least 1 of them")
        if self.every < 1:
            raise DataError(f"a coreset that is chosen anew every {self.every} steps", "give at least 1")

    @property
    def epoch_windows(self) -> int:
        """Number of windows in an epoch: of those that are chosen."""
        return self.chosen

    def place(self, step: int) -> Path:
        """Returns where the choice stands that batch `step` reads from."""
        return self.folder / f"{step - step % self.every}.npy"

    def choose(self, step: int, scores: NDArray[np.floating]) -> None:
        """Writes down the windows of highest score for the period that begins with batch `step`.

        Args:
          step: the first batch of a period.
          scores: of all windows, `[n]`; of equal ones the first is chosen.

        Raises:
          DataError: scores that are not one number a window.
        """
        if scores.shape != (len(self.windows),) or not np.isfinite(scores).all():
            raise DataError(
                f"scores of shape {scores.shape} for {len(self.windows)} windows, or no numbers",
                "give each window a score",
            )
        highest = np.sort(np.argsort(-scores, kind="stable")[: self.chosen]).astype(np.int64)
        self.folder.mkdir(exist_ok=True)
        with replacing(self.place(step)) as file:
            np.save(file, highest)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Returns the windows of a batch over all processes, `[B]`.

        Raises:
          DataError: the choice of its period is missing or of another size.
        """
        if step < 0:
            raise DataError(f"a batch for step {step}", "count steps from 0")
        choice = _choice(self.place(step))
        if choice.shape != (self.chosen,):
            raise DataError(
                f"{self.place(step)} names {choice.size} windows, not {self.chosen}", "remove it: it is chosen again"
            )
        period, local = divmod(step, self.every)
        epochs = -(-self.every * self.batch_size // self.chosen)
        places = local * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        return choice[endless_order(self.seed, period * epochs, self.chosen, places)]

    def fingerprint(self) -> str:
        """Returns a SHA-256 of tokens, order and how windows are chosen."""
        told = json.dumps([self.chosen, self.every, self.rule])
        return hashlib.sha256(f"{super().fingerprint()} {told}".encode()).hexdigest()


def _choice(place: Path) -> NDArray[np.int64]:
    try:
        return _read(place, place.stat().st_mtime_ns)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"no choice of windows at {place}", "resume the run from its checkpoint") from error


@lru_cache(maxsize=2)
def _read(place: Path, written: int) -> NDArray[np.int64]:
    """When it was written is part of the key: a run that is made again in its folder chooses again."""
    return np.asarray(np.load(place, allow_pickle=False), np.int64)
