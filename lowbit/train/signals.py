"""When a run saves and when it stops: the clock, and what the system sends."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from lowbit.errors import ConfigError


class Clock:
    """Says when a checkpoint is due, by steps and by minutes since the last one."""

    def __init__(self, every_steps: int, every_minutes: float):
        if every_steps < 0 or not every_minutes > 0:
            raise ConfigError(
                f"checkpoints every {every_steps} steps or {every_minutes} minutes",
                "give checkpoint.every_steps >= 0 (0: by time) and checkpoint.every_minutes > 0 (inf: by steps)",
            )
        self._every_steps = every_steps
        self._seconds = 60.0 * every_minutes
        self.restart()

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps because of their number: every process says the same."""
        return self._every_steps > 0 and step % self._every_steps == 0

    def late(self) -> bool:
        """Whether to save because of the minutes, which pass differently on each machine."""
        return time.monotonic() - self._last >= self._seconds

    def restart(self) -> None:
        """Counts the minutes anew: a checkpoint has been started."""
        self._last = time.monotonic()


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Turns SIGTERM, which clusters send before they take a machine back, into an event that the loop looks at."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
