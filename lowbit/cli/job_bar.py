"""The progress of a job that goes on where it was stopped, on stderr."""

import sys
import time
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0
"""Between two lines of progress where nobody watches, such as in the log of a cluster."""


class JobBar:
    """How much of all is done, a speed, and the time left.

    Attributes:
      unit: what is counted.
      began: when, by `time.monotonic`.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.began = time.monotonic()
        self._bar: tqdm[Any] | None = None

    def close(self) -> None:
        """Leaves the line as it stands; `contextlib.closing` calls it."""
        if self._bar is not None:
            self._bar.close()

    def move(self, done: int, total: int | None, *, found: int, speed: str) -> None:
        """Moves the bar.

        Args:
          done: of `total`, in units.
          total: all there are; None where nobody knows.
          found: of `done`, what was there already: no part of the job's speed. Read by the first call alone.
          speed: words for the end of the line.
        """
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=found,
                unit=self.unit,
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else LOG_SECONDS,
            )
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(done - self._bar.n)

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self.began
