"""Ranges of grids with a zero point: where the lowest and the highest level of a group lie."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.numerics import groups, scales
from lowbit.numerics.groups import Granularity
from lowbit.numerics.quantizers import State

PERCENT = 99.9
"""Of a group's weights (symmetric: of their magnitudes), how many the percentile range holds."""

SHRUNK = tuple(float(x) for x in np.linspace(0.3, 1.0, 36))
"""Shares of the min-max range that the mean-square range tries."""

Bounds = tuple[Float[Array, "*s g m"], Float[Array, "*s g m"]]


def minmax(grouped: Float[Array, "*s g G m"]) -> Bounds:
    """The least and the greatest weight of a group, and 0 among them: nothing is clipped."""
    return jnp.minimum(jnp.min(grouped, axis=-2), 0.0), jnp.maximum(jnp.max(grouped, axis=-2), 0.0)


def percentile(grouped: Float[Array, "*s g G m"]) -> Bounds:
    """Bounds that leave out `(100 - PERCENT) / 2` percent of the weights at each end."""
    out = (1.0 - PERCENT / 100.0) / 2.0
    return (
        jnp.minimum(jnp.quantile(grouped, out, axis=-2), 0.0),
        jnp.maximum(jnp.quantile(grouped, 1.0 - out, axis=-2), 0.0),
    )


BOUNDS: dict[str, Callable[[Float[Array, "*s g G m"]], Bounds]] = {"max": minmax, "percentile": percentile}

RANGES = ("mse", "max", "percentile")
"""How a grid is laid over the weights of a group: least squared error, all weights, or nearly all."""


def with_zero(bits: int, granularity: Granularity, name: str, dtype: DTypeLike) -> Callable[[Array], State]:
    """Returns `init` of a grid of codes 0 .. 2^bits - 1 with an integer zero point, over the named range.

    The mean-square range tries `SHRUNK` shares of min-max, both ends alike, and keeps what leaves a group the least
    squared error.

    Args:
      bits: 2 to 8.
      granularity: which weights share a scale.
      name: one of `RANGES`.
      dtype: of the stored scale and zero.
    """
    top = float(2**bits - 1)

    def state_of(low: Float[Array, "*s g m"], high: Float[Array, "*s g m"]) -> State:
        scale = (high - low) / top
        return {"scale": scale, "zero": jnp.clip(jnp.round(-low / scales.stored(scale, dtype)), 0.0, top)}

    def error(grouped: Float[Array, "*s g G m"], state: State) -> Float[Array, "*s g m"]:
        scale, zero = scales.stored(state["scale"], dtype)[..., None, :], state["zero"][..., None, :]
        codes = jnp.clip(jnp.round(grouped / scale) + zero, 0.0, top)
        return jnp.sum(jnp.square((codes - zero) * scale - grouped), axis=-2)

    def init(w: Float[Array, "*s k n"]) -> State:
        groups.check(w.shape, granularity)
        grouped = groups.split(w.astype(jnp.float32), granularity)
        if name != "mse":
            return state_of(*BOUNDS[name](grouped))
        low, high = minmax(grouped)
        first = state_of(low, high)

        def attempt(best: tuple[State, Array], share: Array) -> tuple[tuple[State, Array], None]:
            state = state_of(share * low, share * high)
            found = error(grouped, state)
            better = found < best[1]
            kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), state, best[0])
            return (kept, jnp.where(better, found, best[1])), None

        (state, _), _ = jax.lax.scan(attempt, (first, error(grouped, first)), jnp.asarray(SHRUNK, jnp.float32))
        return state

    return init
