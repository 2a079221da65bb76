"""How weights stand on their grid: what a quantizer can tell of itself while training goes on."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.numerics import groups, scales
from lowbit.numerics.grids import AffineGrid, per_group

SAMPLED_CHANNELS = 32
"""Output channels of a matrix whose best scale is searched for: the search passes over its weights 36 times."""


class Standing(NamedTuple):
    """How the weights `w [*s k n]` stand on their grid. Under jit, a field that is not used costs nothing.

    Attributes:
      codes: u8 `[*s k n]`, those of `Quantizer.encode`; here also where stacked layers differ in width.
      clipped: bool `[*s k n]`, whether w/scale is outside of the range that it is clipped to before it is rounded.
      drift: f32 `[*s g m]`, the scale over the one of least squared error for these weights, both as stored, at
        evenly spaced channels (m at most `SAMPLED_CHANNELS`); None where a zero point moves with the scale, and
        on a codebook.
    """

    # Not annotated as arrays: jax rebuilds tuples around stand-ins for them.
    codes: Any
    clipped: Any
    drift: Any


def affine_standing(
    w: Float[Array, "*s k n"],
    scale: Float[Array, "*s g m"],
    affine: AffineGrid,
    granularity: groups.Granularity,
    scale_dtype: DTypeLike,
) -> Standing:
    """Returns the standing on a grid of equal distances, by the arithmetic of `ste.learned_scale`."""
    kept = scales.stored(scale, scale_dtype)
    wide = per_group(affine)
    u = scales.in_units_of(kept, w)
    codes = groups.merge(wide.integers(u) - wide.first).astype(jnp.uint8)
    clipped = groups.merge((u < wide.low) | (u > wide.high))
    best = scales.start(_sampled(w), granularity, scales.SCALE_INITS["mse"], affine)
    return Standing(codes, clipped, _sampled(kept) / scales.stored(best, scale_dtype))


def _sampled(x: Float[Array, "*s a n"]) -> Float[Array, "*s a m"]:
    """Every (n/m)-th channel, m the largest divisor of n up to `SAMPLED_CHANNELS`.

    Cut as a reshape rather than a strided slice: of an array cut along n, each device then keeps its own channels.
    """
    *rest, n = x.shape
    m = next(m for m in range(min(n, SAMPLED_CHANNELS), 0, -1) if n % m == 0)
    return x.reshape(*rest, m, n // m)[..., 0]
