"""Runs on one of the eight devices: on all of them they compile and save for twice as long."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import pytest


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Puts runs whose configs ask for no mesh on the first device, where a claim is not about meshes."""
    from lowbit.train import sharding  # conftest says first how the package is imported

    make_mesh = sharding.make_mesh

    def on_one(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        asked = devices is not None or max(sizes.values()) > 1
        return make_mesh(sizes, devices if asked else jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", on_one)
        yield
