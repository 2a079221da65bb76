"""Where activations lie while the model is computed on a mesh.

Parameters alone do not say it: cut along their inputs, as fully sharded training keeps them, they would draw the
activations into the same cut, and every device would work through the whole batch. Constraints here hold the batch to
its rows, so that it is the weights of one layer that are gathered. They mean something only inside `on_mesh`.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.sharding import Mesh, PartitionSpec

P = ParamSpec("P")
R = TypeVar("R")

ROWS = ("data", "fsdp")
"""Mesh axes that cut a batch."""
WIDTH = "tensor"
"""Mesh axis that cuts heads, hidden units of the MLP, and the vocabulary."""


def on_mesh(mesh: Mesh, function: Callable[P, R]) -> Callable[P, R]:
    """Returns the function, with the constraints in it meant for this mesh when it is traced."""

    def placed(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return placed


def by_rows(x: jax.Array) -> jax.Array:
    """Holds [b ...] to a cut along b alone."""
    return _constrained(x, PartitionSpec(ROWS))


def gathered(matrix: jax.Array, cut: int) -> jax.Array:
    """Holds a matrix to a cut along axis `cut` alone, the vocabulary: whole along the axis that "fsdp" cuts at rest."""
    axes = [None] * matrix.ndim
    return _constrained(matrix, PartitionSpec(*axes[:cut], WIDTH))


def _constrained(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    # A mesh of one device has nothing to hold, and other programs compile as they always did.
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, spec)
