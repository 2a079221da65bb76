"""Straight-through estimators: rounding that lets gradients pass, each with its formula."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics import groups
from lowbit.numerics.grids import AffineGrid, per_group
from lowbit.numerics.scales import in_units_of, stored

Estimator = Callable[[Float[Array, "*s g G n"], Float[Array, "*s g G n"], AffineGrid], Float[Array, "*s g G n"]]
"""(incoming gradient c, u = w/scale, grid with fields for groups) -> the gradient to w."""


def clipped(c: Float[Array, "*s g G n"], u: Float[Array, "*s g G n"], grid: AffineGrid) -> Float[Array, "*s g G n"]:
    """`c where low <= u <= high, else 0`: the usual straight-through estimator (ParetoQ, arXiv 2502.02631)."""
    return jnp.where(_outside(u, grid), 0.0, c)


def identity(c: Float[Array, "*s g G n"], u: Float[Array, "*s g G n"], grid: AffineGrid) -> Float[Array, "*s g G n"]:
    """`c`: weights beyond the range learn as well, and can come back (arXiv 1308.3432)."""
    return c


DSQ_ALPHA = 0.2
"""How far the soft staircase is from a hard one, from 0 (equal) to 0.5."""


def soft_staircase(
    c: Float[Array, "*s g G n"], u: Float[Array, "*s g G n"], grid: AffineGrid
) -> Float[Array, "*s g G n"]:
    """The slope of a staircase of tanh in place of the hard one (DSQ, arXiv 1908.05033, eq. 2 to 7).

    With t the distance of u, in steps, from the threshold between the two levels around it:

      c * (kappa / (2 (1 - alpha))) * (1 - tanh(kappa t)^2), kappa = log(2/alpha - 1)

    Weights near a threshold move faster than those near a level; the mean over a step is c. Beyond the outermost
    levels the slope is that at a level, and 0 outside of low .. high.
    """
    kappa = math.log(2.0 / DSQ_ALPHA - 1.0)
    position = jnp.clip(u * grid.inverse_step - grid.offset, grid.first, grid.integers(jnp.asarray(grid.high)))
    t = position - jnp.floor(position) - 0.5
    slope = (0.5 * kappa / (1.0 - DSQ_ALPHA)) * (1.0 - jnp.square(jnp.tanh(kappa * t)))
    return jnp.where(_outside(u, grid), 0.0, c * slope)


def _outside(u: Float[Array, "*s g G n"], grid: AffineGrid) -> Bool[Array, "*s g G n"]:
    return (u < grid.low) | (u > grid.high)


ESTIMATORS: dict[str, Estimator] = {"clipped": clipped, "identity": identity, "dsq": soft_staircase}
"""Gradients to the weights that a config can name."""


def estimator_by_name(name: str) -> Estimator:
    """Returns the named estimator; raises QuantizerError where there is none."""
    if name not in ESTIMATORS:
        raise QuantizerError(f"unknown gradient estimator {name!r}", nearest(name, ESTIMATORS))
    return ESTIMATORS[name]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def learned_scale(
    w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], grid: AffineGrid, estimator: Estimator = clipped
) -> Float[Array, "*s k n"]:
    """Rounds w to the nearest level of `grid * scale`; both w and the scale learn.

    Forward, with u = w/scale: `level(round(clip(u, low, high)/step - offset)) * scale`.
    Backward, with the incoming gradient c (LSQ, arXiv 1902.08153; ParetoQ, arXiv 2502.02631):

      to w:      as the estimator has it; `clipped`: c where low <= u <= high, else 0
      to scale:  sum over its weights of c * r / sqrt(k * n * reach),
                 r = edge_low below, edge_high above, `level - elastic * u` between

    k*n is the whole matrix even where scales are per group (as in ParetoQ's code). On the binary grid r is sign(w),
    0 at w = 0: there either level is as near as the other.

    Args:
      w: weights `[*s k n]`, any float dtype; the arithmetic is float32.
      scale: positive, float32, `[*s g n]`, `[*s 1 n]` or `[*s 1 1]`.
      grid: fields are numbers or arrays `[*s 1 1]`.
      estimator: of the gradient to w.

    Returns:
      The quantized weights in the dtype of w.
    """
    u = in_units_of(scale, w)
    grid = per_group(grid)
    w_hat = grid.level(grid.integers(u)) * scale[..., None, :]
    return groups.merge(w_hat).astype(w.dtype)


def _learned_scale_fwd(
    w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], grid: AffineGrid, estimator: Estimator
) -> tuple[Float[Array, "*s k n"], tuple[Array, Array, AffineGrid]]:
    return learned_scale(w, scale, grid, estimator), (w, scale, grid)


def _learned_scale_bwd(
    estimator: Estimator, residuals: tuple[Array, Array, AffineGrid], cotangent: Float[Array, "*s k n"]
) -> tuple[Float[Array, "*s k n"], Float[Array, "*s g m"], AffineGrid]:
    w, scale, grid = residuals
    u = in_units_of(scale, w)
    c = groups.split_like(cotangent.astype(jnp.float32), scale)
    wide = per_group(grid)
    below, above = u < wide.low, u > wide.high
    grad_w = estimator(c, u, wide)
    inside = wide.level(wide.integers(u)) - wide.elastic * u
    inside = jnp.where((u == 0) & (jnp.asarray(wide.elastic) == 0), 0.0, inside)
    r = jnp.where(below, wide.edge_low, jnp.where(above, wide.edge_high, inside))
    k, n = w.shape[-2:]
    damping = jax.lax.rsqrt(jnp.asarray(grid.reach, jnp.float32) * (k * n))
    grad_scale = groups.reduce_to(c * r, scale) * damping
    zeros = jax.tree.map(lambda field: jnp.zeros_like(jnp.asarray(field)), grid)
    return groups.merge(grad_w).astype(w.dtype), grad_scale, zeros


learned_scale.defvjp(_learned_scale_fwd, _learned_scale_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def learned_zero(
    w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], zero: Float[Array, "*s g m"], top: float
) -> Float[Array, "*s k n"]:
    """Rounds w to codes 0 .. top about a whole zero point; w, scale and zero point learn.

    Forward, with `z = round(w/scale) + zero`: `(clip(z, 0, top) - zero) * scale`.
    Backward, with the incoming gradient c (EfficientQAT's Block-AP, arXiv 2407.11062):

      to w:      c where 0 <= z <= top, else 0
      to scale:  sum over its weights of c * (clip(z, 0, top) - zero - w/scale where 0 <= z <= top, else
                 clip(z, 0, top) - zero)
      to zero:   sum over its weights of 0 where 0 <= z <= top, else -c * scale

    Args:
      w: weights `[*s k n]`, any float dtype; the arithmetic is float32.
      scale: positive, float32.
      zero: whole numbers, float32; like the scale.
      top: the largest code.

    Returns:
      The quantized weights in the dtype of w.
    """
    codes = jnp.round(in_units_of(scale, w)) + zero[..., None, :]
    return groups.merge((jnp.clip(codes, 0.0, top) - zero[..., None, :]) * scale[..., None, :]).astype(w.dtype)


def _learned_zero_fwd(w: Array, scale: Array, zero: Array, top: float) -> tuple[Array, tuple[Array, Array, Array]]:
    return learned_zero(w, scale, zero, top), (w, scale, zero)


def _learned_zero_bwd(
    top: float, residuals: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, Array]:
    w, scale, zero = residuals
    u, wide_zero = in_units_of(scale, w), zero[..., None, :]
    c = groups.split_like(cotangent.astype(jnp.float32), scale)
    codes = jnp.round(u) + wide_zero
    outside = (codes < 0.0) | (codes > top)
    offset = jnp.clip(codes, 0.0, top) - wide_zero - jnp.where(outside, 0.0, u)
    grad_zero = groups.reduce_to(jnp.where(outside, -c * scale[..., None, :], 0.0), scale)
    grad_w = groups.merge(jnp.where(outside, 0.0, c)).astype(w.dtype)
    return grad_w, groups.reduce_to(c * offset, scale), grad_zero


learned_zero.defvjp(_learned_zero_fwd, _learned_zero_bwd)


@jax.custom_vjp
def signs_between(
    w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], in_scale: Float[Array, "*s k 1"]
) -> Float[Array, "*s k n"]:
    """Returns `sign(w) * scale * in_scale` in the dtype of w; w and both vectors learn.

    Backward, with the incoming gradient c (OneBit's code, arXiv 2402.11295):

      to w:         c * scale * in_scale * (1.001 - tanh(w)^2): the slope of a tanh, which nowhere vanishes
      to scale:     sum over its weights of c * sign(w) * in_scale
      to in_scale:  sum over the outputs of c * sign(w) * scale

    Args:
      w: weights `[*s k n]`, any float dtype; sign(0) = 1.
      scale: positive, float32, `[*s g n]`, `[*s 1 n]` or `[*s 1 1]`.
      in_scale: positive, float32.
    """
    return (groups.merge(_signs(w, scale) * scale[..., None, :]) * in_scale).astype(w.dtype)


def _signs(w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"]) -> Float[Array, "*s g G n"]:
    return jnp.where(groups.split_like(w, scale) >= 0, jnp.float32(1), jnp.float32(-1))


def _signs_fwd(w: Array, scale: Array, in_scale: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return signs_between(w, scale, in_scale), (w, scale, in_scale)


def _signs_bwd(residuals: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array, Array]:
    w, scale, in_scale = residuals
    c = cotangent.astype(jnp.float32)
    slope = 1.001 - jnp.square(jnp.tanh(w.astype(jnp.float32)))
    of_outputs = groups.merge(groups.split_like(c, scale) * scale[..., None, :])
    of_inputs = groups.split_like(c * in_scale, scale)
    signs = _signs(w, scale)
    grad_in = jnp.sum(of_outputs * groups.merge(signs), axis=-1, keepdims=True)
    return (of_outputs * in_scale * slope).astype(w.dtype), groups.reduce_to(of_inputs * signs, scale), grad_in


signs_between.defvjp(_signs_fwd, _signs_bwd)


@jax.custom_vjp
def passthrough(w: Float[Array, "*dims"], w_hat: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Returns `w_hat`; the whole gradient goes to w, as if `w_hat` were w."""
    return w_hat


def _passthrough_fwd(w: Array, w_hat: Array) -> tuple[Array, None]:
    return w_hat, None


def _passthrough_bwd(residuals: None, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, jnp.zeros_like(cotangent)


passthrough.defvjp(_passthrough_fwd, _passthrough_bwd)


@jax.custom_vjp
def passthrough_inside(
    w: Float[Array, "*dims"], w_hat: Float[Array, "*dims"], inside: Bool[Array, "*dims"]
) -> Float[Array, "*dims"]:
    """Returns `w_hat`; the gradient goes to w where `inside`, and is 0 elsewhere."""
    return w_hat


def _inside_fwd(w: Array, w_hat: Array, inside: Array) -> tuple[Array, Array]:
    return w_hat, inside


def _inside_bwd(inside: Array, cotangent: Array) -> tuple[Array, Array, None]:
    return jnp.where(inside, cotangent, 0), jnp.zeros_like(cotangent), None


passthrough_inside.defvjp(_inside_fwd, _inside_bwd)


def stored_scale(scale: Float[Array, "*s g m"], dtype: DTypeLike) -> Float[Array, "*s g m"]:
    """Floors and rounds a scale to what the file stores (`scales.stored`); the gradient passes unchanged."""
    return passthrough(scale, stored(jax.lax.stop_gradient(scale), dtype))
