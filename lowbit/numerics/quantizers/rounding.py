"""Quantizers whose scale is computed from the weights: RTN (it may go on to learn), LLM-QAT, absmean ternary."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lowbit.errors import QuantizerError
from lowbit.numerics import groups, scales, ste
from lowbit.numerics.grids import (
    TERNARY_BITS,
    AffineGrid,
    Grid,
    elastic_binary,
    freeze,
    integer,
    integer_ternary,
)
from lowbit.numerics.groups import Granularity
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.quantizers.paretoq import affine_levels, encode_affine
from lowbit.numerics.standing import Standing, affine_standing


def rtn(
    bits: float,
    granularity: Granularity = "channel",
    symmetric: bool = True,
    scale_init: str | scales.ScaleInit = "max",
    scale_dtype: DTypeLike = jnp.float16,
    learns: bool = False,
) -> Quantizer:
    """Round to nearest: what a model becomes without any training.

    Symmetric: levels -2^(b-1) .. 2^(b-1)-1 times `max|w| / (2^(b-1)-1)`; -1, 0, 1 at 1.58 bits; sign(w) * mean|w| at 1
    bit, where a maximum would mean nothing. Min-max (`symmetric=False`, 2 to 8 bits): codes 0 .. 2^b-1, scale
    `(max - min) / (2^b-1)` over a range that includes 0, and an integer zero point, so that 0 is a level. A scale taken
    from max - min without the zero point clips: that text-book shortcut is not offered.

    Gradient of `fake`: passes to w where w is inside the range of the levels, else 0; the scale does not learn, unless
    `learns` asks for the gradients of `ste.learned_scale` and, min-max, `ste.learned_zero`.

    Args:
      bits: 1, 1.58, or an integer from 2 to 8.
      granularity: see `groups.Granularity`.
      symmetric: False for the min-max grid.
      scale_init: start for the symmetric grid: "max", "mse", ... (`scales.SCALE_INITS`).
      scale_dtype: what the file stores, zero points included.
      learns: whether scales and zero points have gradients.

    Raises:
      QuantizerError: another width, min-max below 2 bits, or a scale dtype that no file holds.
    """
    if not symmetric:
        return _minmax(bits, granularity, scale_dtype, learns)
    if bits == 1:
        affine, count, name = elastic_binary(), 2, "binary"
        start = scales.paretoq_reference if scale_init == "max" else scales.by_name(scale_init)
    else:
        affine, count, name = _signed(bits)
        start = scales.by_name(scale_init)
    grid = freeze(name, count, affine)
    return _affine(f"rtn{bits:g}", grid, affine, granularity, start, scale_dtype, learns=learns)


def _signed(bits: float) -> tuple[AffineGrid, int, str]:
    if bits == TERNARY_BITS:
        return integer_ternary(), 3, "ternary"
    if bits not in range(2, 9):
        raise QuantizerError(f"no grid of rounding has {bits!r} bits", "choose 1, 1.58, or an integer from 2 to 8")
    return integer(int(bits)), 2 ** int(bits), f"int{int(bits)}"


def _affine(
    name: str,
    grid: Grid,
    affine: AffineGrid,
    granularity: Granularity,
    scale_init: scales.ScaleInit,
    scale_dtype: DTypeLike,
    dynamic: bool = False,
    ste_limit: float | None = None,
    learns: bool = False,
) -> Quantizer:
    """An affine grid; gradients to weights outside `|w| < ste_limit`, or the grid's range, are 0."""
    groups.check_granularity(granularity)
    scales.check_dtype(scale_dtype, "a scale")

    def init(w: Float[Array, "..."]) -> State:
        return {"scale": scales.start(w, granularity, scale_init, affine)}

    def encode(w: Float[Array, "*s k n"], state: State) -> QTensor:
        return encode_affine(w, state["scale"], affine, grid, scale_dtype)

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        scale = state["scale"] if learns else jax.lax.stop_gradient(state["scale"])
        w_hat = ste.learned_scale(w, ste.stored_scale(scale, scale_dtype), affine)
        if ste_limit is None:
            return w_hat
        return ste.passthrough_inside(w, jax.lax.stop_gradient(w_hat), jnp.abs(w) < ste_limit)

    def standing(w: Float[Array, "*s k n"], state: State) -> Standing:
        return affine_standing(w, state["scale"], affine, granularity, scale_dtype)

    def levels(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return affine_levels(w, state["scale"], affine, scale_dtype)

    return Quantizer(
        name, grid, init, encode, fake, granularity, dynamic, standing=standing, levels=levels, scale_dtype=scale_dtype
    )


def _minmax(bits: float, granularity: Granularity, scale_dtype: DTypeLike, learns: bool) -> Quantizer:
    """Asymmetric rounding with an integer zero point."""
    if bits not in range(2, 9):
        raise QuantizerError(f"min-max rounding has no {bits!r}-bit grid", "choose an integer from 2 to 8")
    groups.check_granularity(granularity)
    scales.check_dtype(scale_dtype, "a scale")
    top = float(2 ** int(bits) - 1)
    grid = Grid(f"uint{int(bits)}", tuple(float(i) for i in range(2 ** int(bits))))

    def init(w: Float[Array, "..."]) -> State:
        groups.check(w.shape, granularity)
        grouped = groups.split(w.astype(jnp.float32), granularity)
        low = jnp.minimum(jnp.min(grouped, axis=-2), 0.0)
        high = jnp.maximum(jnp.max(grouped, axis=-2), 0.0)
        scale = (high - low) / top
        return {"scale": scale, "zero": jnp.round(-low / scales.stored(scale, scale_dtype))}

    def parts(w: Float[Array, "*s k n"], state: State) -> tuple[Array, Array, Array]:
        scale = scales.stored(state["scale"], scale_dtype)
        zero = jnp.round(state["zero"]).astype(scale_dtype).astype(jnp.float32)
        codes = jnp.clip(jnp.round(scales.in_units_of(scale, w)) + zero[..., None, :], 0.0, top)
        return codes, scale, zero

    def encode(w: Float[Array, "*s k n"], state: State) -> QTensor:
        codes, scale, zero = parts(w, state)
        return QTensor(groups.merge(codes).astype(jnp.uint8), scale.astype(scale_dtype), zero.astype(scale_dtype), grid)

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        codes, scale, zero = parts(*jax.lax.stop_gradient((w, state)))
        if learns:
            learned = ste.passthrough(state["scale"], scale), ste.passthrough(state["zero"], zero)
            return ste.learned_zero(w, *learned, top)
        wide_scale, wide_zero = scale[..., None, :], zero[..., None, :]
        w_hat = groups.merge((codes - wide_zero) * wide_scale).astype(w.dtype)
        return ste.passthrough_inside(w, w_hat, inside(w, scale, zero))

    def inside(w: Float[Array, "*s k n"], scale: Array, zero: Array) -> Bool[Array, "*s k n"]:
        wide_scale, wide_zero = scale[..., None, :], zero[..., None, :]
        if learns:  # as `ste.learned_zero` has it: half a step further on either side
            codes = jnp.round(scales.in_units_of(scale, w)) + wide_zero
            return groups.merge((codes >= 0.0) & (codes <= top))
        grouped = groups.split_like(w.astype(jnp.float32), scale)
        return groups.merge((grouped >= (0.0 - wide_zero) * wide_scale) & (grouped <= (top - wide_zero) * wide_scale))

    def standing(w: Float[Array, "*s k n"], state: State) -> Standing:
        codes, scale, zero = parts(w, state)
        return Standing(groups.merge(codes).astype(jnp.uint8), ~inside(w, scale, zero), None)

    def levels(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return groups.merge(parts(w, state)[0])

    return Quantizer(
        f"rtn{bits:g}_minmax",
        grid,
        init,
        encode,
        fake,
        granularity,
        standing=standing,
        levels=levels,
        scale_dtype=scale_dtype,
    )


def llmqat(
    bits: float,
    granularity: Granularity = "channel",
    variant: str = "fixed",
    scale_dtype: DTypeLike = jnp.float16,
) -> Quantizer:
    """LLM-QAT's weights: symmetric rounding, the scale `max|w| / (2^(b-1)-1)` recomputed at every step.

    Source: arXiv 2305.17888, section 3. No parameter is added; nothing is clipped, so gradients pass everywhere.

    Args:
      bits: an integer from 2 to 8.
      granularity: the paper has one scale an output channel.
      variant: "fixed", or "reference" for the reference code's zero gradient at |w| >= 2 (in absolute units, whatever
        the scale) and its 1e-6 added to the maximum. Its second 1e-6, added to the reciprocal, is below the rounding of
        the stored scale and is left out.
      scale_dtype: what the file stores.

    Raises:
      QuantizerError: another width, variant, or scale dtype than these.
    """
    if bits not in range(2, 9):
        raise QuantizerError(
            f"LLM-QAT has no {bits!r}-bit grid", "choose an integer from 2 to 8, or paretoq for 1 and 1.58"
        )
    if variant not in ("fixed", "reference"):
        raise QuantizerError(f"unknown variant {variant!r} of llmqat", "choose 'fixed' or 'reference'")
    margin, limit = (1e-6, 2.0) if variant == "reference" else (0.0, math.inf)

    def start(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
        return (jnp.max(jnp.abs(grouped), axis=-2) + margin) / grid.reach

    affine, count, name = _signed(bits)
    grid = freeze(name, count, affine)
    return _affine(f"llmqat{bits:g}", grid, affine, granularity, start, scale_dtype, True, limit)


def absmean_ternary(granularity: Granularity = "tensor", scale_dtype: DTypeLike = jnp.float16) -> Quantizer:
    """BitNet b1.58: levels -1, 0, 1 times mean|w|, recomputed at every step (arXiv 2402.17764, eq. 1-3).

    Gradients pass everywhere. Applied to its own result it shrinks (the mean of a ternary tensor is below its level):
    it is idempotent only with the scale held. The mean is `scales.mean_magnitude`, which has one order of summation.

    Args:
      granularity: the paper has one scale a matrix.
      scale_dtype: what the file stores.

    Raises:
      QuantizerError: a scale dtype that no file holds.
    """

    def start(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
        return scales.mean_magnitude(grouped)

    affine, count, name = _signed(TERNARY_BITS)
    grid = freeze(name, count, affine)
    return _affine("absmean_ternary", grid, affine, granularity, start, scale_dtype, True, math.inf)
