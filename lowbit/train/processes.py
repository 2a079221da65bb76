"""Several processes of one run: who writes, and how they agree."""

import collections
import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowbit.errors import ProcessError


def is_first() -> bool:
    """Whether this process writes what a run has one of: its folder's files, logs, records."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Returns when every process has come to `point`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def any_of(flag: bool) -> bool:
    """Returns whether any process says yes, when all have answered; see `Agreement` for what is asked every step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


class Agreement:
    """What any process wants, known to all of them at the same step: clocks and signals differ between machines.

    The answers travel through the devices, behind the steps already started, and are read `lag` steps later: nobody
    waits for them. A single process hears itself at once.
    """

    def __init__(self, mesh: Mesh, lag: int = 2):
        self._lag = lag
        self._answers: collections.deque[jax.Array] = collections.deque()
        self._place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda wishes: jnp.any(wishes, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def any_of(self, *wishes: bool) -> tuple[bool, ...]:
        """Returns for each wish whether any process had it, `lag` calls ago; all processes must call alike."""
        if jax.process_count() == 1:
            return wishes
        local = len(self._place.addressable_devices)
        rows = np.broadcast_to(np.asarray(wishes), (local, len(wishes)))
        self._answers.append(self._any(jax.make_array_from_process_local_data(self._place, rows)))
        if len(self._answers) <= self._lag:
            return (False,) * len(wishes)
        return tuple(np.asarray(self._answers.popleft()).tolist())

    def forget(self) -> None:
        """Drops answers on their way: what they ask for has been done."""
        self._answers.clear()


@contextlib.contextmanager
def losses_explained() -> Iterator[None]:
    """Raises ProcessError for a shared computation that failed, most often because another process is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise ProcessError(
            f"process {jax.process_index()} of {jax.process_count()} failed in a step shared by all: "
            f"{str(error).splitlines()[0]:.200}",
            "look for the first error among the processes, then start all of them again with --resume",
        ) from error
