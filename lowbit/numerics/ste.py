"""Straight-through estimators: rounding that lets gradients pass, each with its formula."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lowbit.numerics import groups
from lowbit.numerics.grids import AffineGrid, per_group
from lowbit.numerics.scales import in_units_of, stored


@jax.custom_vjp
def learned_scale(w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], grid: AffineGrid) -> Float[Array, "*s k n"]:
    """Rounds w to the nearest level of `grid * scale`; both w and the scale learn.

    Forward, with u = w/scale: `level(round(clip(u, low, high)/step - offset)) * scale`.
    Backward, with the incoming gradient c (LSQ, arXiv 1902.08153; ParetoQ, arXiv 2502.02631):

      to w:      c where low <= u <= high, else 0
      to scale:  sum over its weights of c * r / sqrt(k * n * reach),
                 r = edge_low below, edge_high above, `level - elastic * u` between

    k*n is the whole matrix even where scales are per group (as in ParetoQ's code). On the binary grid r is sign(w),
    0 at w = 0: there either level is as near as the other.

    Args:
      w: weights `[*s k n]`, any float dtype; the arithmetic is float32.
      scale: positive, float32, `[*s g n]`, `[*s 1 n]` or `[*s 1 1]`.
      grid: fields are numbers or arrays `[*s 1 1]`.

    Returns:
      The quantized weights in the dtype of w.
    """
    u = in_units_of(scale, w)
    grid = per_group(grid)
    w_hat = grid.level(grid.integers(u)) * scale[..., None, :]
    return groups.merge(w_hat).astype(w.dtype)


def _learned_scale_fwd(
    w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], grid: AffineGrid
) -> tuple[Float[Array, "*s k n"], tuple[Array, Array, AffineGrid]]:
    return learned_scale(w, scale, grid), (w, scale, grid)


def _learned_scale_bwd(
    residuals: tuple[Array, Array, AffineGrid], cotangent: Float[Array, "*s k n"]
) -> tuple[Float[Array, "*s k n"], Float[Array, "*s g m"], AffineGrid]:
    w, scale, grid = residuals
    u = in_units_of(scale, w)
    c = groups.split_like(cotangent.astype(jnp.float32), scale)
    wide = per_group(grid)
    below, above = u < wide.low, u > wide.high
    grad_w = jnp.where(below | above, 0.0, c)
    inside = wide.level(wide.integers(u)) - wide.elastic * u
    inside = jnp.where((u == 0) & (jnp.asarray(wide.elastic) == 0), 0.0, inside)
    r = jnp.where(below, wide.edge_low, jnp.where(above, wide.edge_high, inside))
    k, n = w.shape[-2:]
    damping = jax.lax.rsqrt(jnp.asarray(grid.reach, jnp.float32) * (k * n))
    grad_scale = groups.reduce_to(c * r, scale) * damping
    zeros = jax.tree.map(lambda field: jnp.zeros_like(jnp.asarray(field)), grid)
    return groups.merge(grad_w).astype(w.dtype), grad_scale, zeros


learned_scale.defvjp(_learned_scale_fwd, _learned_scale_bwd)


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
