"""Grids of any levels, such as NormalFloat and powers of two, as quantizers of weights that stand still."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.numerics import groups, scales, ste
from lowbit.numerics.grids import Grid
from lowbit.numerics.groups import Granularity
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.standing import Standing

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""NormalFloat of 4 bits: quantiles of a normal distribution, with a 0 (QLoRA, arXiv 2305.14314, appendix E)."""

FEW = 16
"""Up to so many levels are compared with one by one; a search serves more."""


def power_levels(bits: int) -> tuple[float, ...]:
    """Levels 0 and +-2^-i, i = 0, 1, ...: products become shifts (arXiv 1603.01025). 2^bits - 1 of them."""
    positive = [2.0**-i for i in reversed(range(2 ** (bits - 1) - 1))]
    return (*(-level for level in reversed(positive)), 0.0, *positive)


def codebook(
    name: str, levels: tuple[float, ...], granularity: Granularity, scale_dtype: DTypeLike = jnp.float16
) -> Quantizer:
    """The nearest of some levels times `max|w| / max|level|`.

    A weight in the middle of two levels goes to the lower one. Gradients of `fake` pass to w everywhere.

    Args:
      name: of the quantizer and of its grid in the packed file.
      levels: as `Grid` takes them.
      granularity: which weights share a scale.
      scale_dtype: what the file stores.

    Raises:
      QuantizerError: levels that are no grid, an unknown granularity, or a dtype that no file holds.
    """
    groups.check_granularity(granularity)
    scales.check_dtype(scale_dtype, "a scale")
    grid = Grid(name, levels)
    table = grid.table()
    middles = (table[1:] + table[:-1]) / np.float32(2)
    reach = float(np.abs(table).max())

    def init(w: Float[Array, "..."]) -> State:
        groups.check(w.shape, granularity)
        grouped = groups.split(w.astype(jnp.float32), granularity)
        return {"scale": jnp.max(jnp.abs(grouped), axis=-2) / reach}

    def codes_of(u: Array) -> Array:
        return groups.merge(jnp.searchsorted(jnp.asarray(middles), u)).astype(jnp.uint8)

    def encode(w: Float[Array, "*s k n"], state: State) -> QTensor:
        kept = scales.stored(state["scale"], scale_dtype)
        return QTensor(codes_of(scales.in_units_of(kept, w)), kept.astype(scale_dtype), None, grid)

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        kept = scales.stored(state["scale"], scale_dtype)
        nearest = _nearest(table, middles, scales.in_units_of(kept, w))
        return ste.passthrough(w, groups.merge(nearest * kept[..., None, :]).astype(w.dtype))

    def standing(w: Float[Array, "*s k n"], state: State) -> Standing:
        u = scales.in_units_of(scales.stored(state["scale"], scale_dtype), w)
        return Standing(codes_of(u), groups.merge((u < table[0]) | (u > table[-1])), None)

    return Quantizer(name, grid, init, encode, fake, granularity, standing=standing, scale_dtype=scale_dtype)


def nf4(granularity: Granularity = 64, scale_dtype: DTypeLike = jnp.float16) -> Quantizer:
    """`NF4_LEVELS` times max|w| of a group; the paper's groups are of 64 inputs of one output, its scales float32."""
    return codebook("nf4", NF4_LEVELS, granularity, scale_dtype)


def _nearest(table: np.ndarray, middles: np.ndarray, u: Array) -> Array:
    """The level nearest to each number. Few are chosen one by one, in one loop that keeps numbers on their devices."""
    if len(table) > FEW:
        return jnp.asarray(table)[jnp.searchsorted(jnp.asarray(middles), u)]
    nearest = jnp.full_like(u, table[0])
    for middle, level in zip(middles, table[1:], strict=True):
        nearest = jnp.where(u > middle, level, nearest)
    return nearest
