"""Matrices of layers in arrays of their own: floats as a GPU reads them fastest, and layers that are unlike each other.

XLA hands a layer of a stack to a library's product only after it has copied it, which writes it and reads it twice: a
token of a model with a billion weights took more than twice as long on an H100. What is an array of its own is read
where it lies. Outputs come first, as products of one token are sums along what lies side by side.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_ALONG_INPUTS = (((1,), (1,)), ((), ()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FloatMatrix:
    """A matrix [k n].

    Attributes:
      rows: [n k].
    """

    # Not annotated as an array: transformations rebuild pytrees around stand-ins.
    rows: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnLayers:
    """One matrix a layer, which no loop over the layers can choose from.

    Attributes:
      matrices: of any form that a decoder multiplies by.
    """

    matrices: tuple[Any, ...]

    def of_layer(self, layer: int) -> Any:
        """Returns one of them."""
        return self.matrices[layer]


def lay_out(members: Sequence[Any], dtype: DTypeLike) -> OwnLayers:
    """Returns stacks [L k n] with the same inputs as matrices [k n1+n2+...] in `dtype`, one layer after another."""
    layers = range(len(members[0]))
    rows = [_joined(tuple(w[layer] for w in members), jnp.dtype(dtype)) for layer in layers]
    return OwnLayers(tuple(map(FloatMatrix, rows)))


@functools.partial(jax.jit, static_argnames="dtype")
def _joined(members: tuple[Any, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.concatenate([w.astype(dtype).T for w in members])


def float_matmul(x: jax.Array, w: FloatMatrix, precision: Any, dtype: DTypeLike | None) -> jax.Array:
    """Returns x [b k] times the matrix, [b n], in `dtype` or that of x."""
    return jax.lax.dot_general(x, w.rows, _ALONG_INPUTS, precision, dtype)
