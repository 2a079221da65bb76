"""Float matrices as a GPU reads them fastest: outputs first, and those of each layer in an array of their own.

XLA hands a layer of a stack to a library's product only after it has copied it, which writes it and reads it twice: a
token of a model with a billion weights took four times as long on an H100. What is an array of its own is read where
it lies. Outputs first, as products of one token are sums along what lies side by side.
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
class FloatLayers:
    """The matrices [k n] of all layers.

    Attributes:
      rows: [n k] of each.
    """

    rows: tuple[Any, ...]

    def of_layer(self, layer: int) -> FloatMatrix:
        """Returns one of them."""
        return FloatMatrix(self.rows[layer])


def lay_out(members: Sequence[Any], dtype: DTypeLike) -> FloatLayers:
    """Returns stacks [L k n] with the same inputs as matrices [k n1+n2+...] in `dtype`, one layer after another."""
    layers = range(len(members[0]))
    return FloatLayers(tuple(_joined(tuple(w[layer] for w in members), jnp.dtype(dtype)) for layer in layers))


@functools.partial(jax.jit, static_argnames="dtype")
def _joined(members: tuple[Any, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.concatenate([w.astype(dtype).T for w in members])


def float_matmul(x: jax.Array, w: FloatMatrix, precision: Any, dtype: DTypeLike | None) -> jax.Array:
    """Returns x [b k] times the matrix, [b n], in `dtype` or that of x."""
    return jax.lax.dot_general(x, w.rows, _ALONG_INPUTS, precision, dtype)
