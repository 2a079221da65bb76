"""The quantizer: three pure functions and the state they share, in the manner of optax."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from lowbit.numerics import groups
from lowbit.numerics.grids import Grid
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.standing import Standing

State = dict[str, Any]
"""What a quantizer keeps of one parameter: `{"scale": [*s g n], ...}`, a pytree of arrays.

The key "grid", where present, is constant, never learned: an `AffineGrid` of arrays `[*s 1 1]`, or, where codes are
fixed, the whole state that made them (`fixed`).
"""


class Quantizer(NamedTuple):
    """How one parameter is quantized.

    Laws (each tested for every quantizer): `fake(w, s) == encode(w, s).decode()` bit for bit; encoding what was decoded
    gives the same codes, s fixed; the gradient of `fake` is the documented formula.

    Attributes:
      name: for reports, such as "paretoq2".
      grid: the levels; None where the state carries traced grids, or the parameter stays float.
      init: `w [*s k n] -> state`; float32, no rounding to the stored dtype.
      encode: `(w, state) -> QTensor`; a float array in the stored dtype where grid and state hold no grid.
      fake: `(w, state) -> w_hat`, shape and dtype of w; differentiable by a straight-through estimator.
      granularity: which weights share a scale; None where there is no scale.
      dynamic: the state is a function of the weights, recomputed at each use, and nothing of it is learned or stored
        during training. `init` followed by `fake` or `encode` is then the whole quantizer.
      at_layer: where stacked layers differ, the quantizer of layer i (for `[k n]`); None where they are all alike.
      standing: `(w, state) -> Standing`, for statistics; None where the parameter stays float.
      masters: `(w, state) -> w`, what the float weights become when training starts, after `init`; None leaves them.
      levels: `(w, state) -> level of each weight's code`, f32 `[*s k n]` in units of the grid; None where a decoded
        weight is not `(level - zero) * scale`.
      scale_dtype: in which the file stores scales and zero points; None where the parameter stays float, and for the
        two vectors of OneBit.
      fixed: codes are those of the start, whatever is learned: masters have no gradient.
      adapter: rank of the factors that learn beside the codes (`adapted`); 0 where there are none. `masters` then are
        the codes themselves, u8.
      doubled: the file holds scales as codes with scales of their own (`doubled`).
    """

    name: str
    grid: Grid | None
    init: Callable[[Array], State]
    encode: Callable[[Array, State], QTensor | Array]
    fake: Callable[[Array, State], Array]
    granularity: groups.Granularity | None = "channel"
    dynamic: bool = False
    at_layer: Callable[[int], "Quantizer"] | None = None
    standing: Callable[[Array, State], Standing] | None = None
    masters: Callable[[Array, State], Array] | None = None
    levels: Callable[[Array, State], Array] | None = None
    scale_dtype: DTypeLike | None = None
    fixed: bool = False
    adapter: int = 0
    doubled: bool = False

    def layer(self, index: int) -> "Quantizer":
        """The quantizer of one layer of a stacked parameter."""
        return self if self.at_layer is None else self.at_layer(index)

    def state_of(self, w: Shaped[Array, "..."], state: State | None) -> State:
        """The state to use now: the one given, or a fresh one where the quantizer is dynamic."""
        if self.dynamic:
            return jax.lax.stop_gradient(self.init(jax.lax.stop_gradient(w)))
        return {} if state is None else state


def swap(w: Float[Array, "*s a b"]) -> Float[Array, "*s b a"]:
    """The last two axes exchanged."""
    return jnp.swapaxes(w, -1, -2)


def transposed(quantizer: Quantizer) -> Quantizer:
    """Quantizes arrays `[*s n k]`, such as an embedding `[V d]` with one scale a vocabulary row.

    Codes are fixed before they are turned: `transposed(fixed(q))`.
    """

    def encode(w: Array, state: State) -> QTensor | Array:
        q = quantizer.encode(swap(w), state)
        if isinstance(q, QTensor):
            return dataclasses.replace(q, transposed=not q.transposed)
        return swap(q)

    standing, masters = quantizer.standing, quantizer.masters
    return quantizer._replace(
        name=f"{quantizer.name}_transposed",
        init=lambda w: quantizer.init(swap(w)),
        encode=encode,
        fake=lambda w, state: swap(quantizer.fake(swap(w), state)),
        standing=None if standing is None else lambda w, state: standing(swap(w), state),
        masters=None if masters is None else lambda w, state: swap(masters(swap(w), state)),
        levels=None,
    )
