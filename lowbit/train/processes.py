"""Several processes of one run: who writes, and how they agree."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process writes what a run has one of: its folder's files, logs, records."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Returns when every process has come to `point`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def any_of(flag: bool) -> bool:
    """Returns whether any process says yes; all must ask, as clocks and signals differ between machines."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
