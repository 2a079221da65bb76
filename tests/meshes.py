"""Runs on one of the eight devices: on all of them they compile and save for twice as long."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import pytest


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Puts runs whose configs ask for no mesh on the first device, where a claim is not about meshes.

    A mesh takes as many devices as it names: the threads of two cores wait for each other now and then, without end,
    where eight devices compute a program with many collectives.
    """
    from lowbit.train import sharding  # conftest says first how the package is imported

    make_mesh = sharding.make_mesh

    def on_one(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        named = math.prod(sizes.values()) if -1 not in sizes.values() or max(sizes.values()) > 1 else 1
        return make_mesh(sizes, devices or jax.devices()[: named if named > 0 else None])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", on_one)
        yield
