"""Where a scale starts, and how it is rounded to what the file stores.

At 10 M tokens of QAT the start is worth more than the choice of learning rate: from max|w| a 2-bit SmolLM2-135M
ends 0.2 to 1.1 nats/token above the same run started from the mean-square-optimal scale.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics import groups
from lowbit.numerics.grids import AffineGrid, per_group

FLOOR = 1e-5
"""The smallest scale in use, so that an all-zero group divides by something."""

FLOAT_DTYPES = ("float16", "bfloat16", "float32")
"""What a packed file can hold of a number that is no code."""

_SUMMED_AT_ONCE = 8

ScaleInit = Callable[[Float[Array, "*s g G m"], AffineGrid], Float[Array, "*s g m"]]
"""Weights grouped by `groups.split`, and their grid (fields scalar or `[*s 1 1]`) -> the scale of each group."""


def check_dtype(dtype: jax.typing.DTypeLike, what: str) -> str:
    """Returns the name of a dtype in which `what` ("a scale") can be stored.

    Raises:
      QuantizerError: no dtype, or not one of `FLOAT_DTYPES`.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:  # no dtype at all
        name = str(dtype)
    if name not in FLOAT_DTYPES:
        raise QuantizerError(f"{what} cannot be stored as {name!r}", f"choose from {', '.join(FLOAT_DTYPES)}")
    return name


def stored(scale: Float[Array, "*s g m"], dtype: jax.typing.DTypeLike) -> Float[Array, "*s g m"]:
    """Returns the float32 value of the scale that the packed file will hold: floored, then rounded to `dtype`."""
    largest = float(jnp.finfo(dtype).max)
    return jnp.clip(scale, FLOOR, largest).astype(dtype).astype(jnp.float32)


def in_units_of(scale: Float[Array, "*s g m"], w: Float[Array, "*s k n"]) -> Float[Array, "*s g G n"]:
    """Returns `w / scale`, correctly rounded, with k split into the groups that the scale has.

    Compilers rewrite a division by a broadcast array as a product with its reciprocal, in some programs and not in
    others; at a tie, or for the group's largest weight, the last bit decides a code or a gradient. The divisor here is
    therefore a maximum that depends on w as well: it always equals the scale (at least `FLOOR`), and no rewrite of a
    broadcast applies to it.
    """
    grouped = groups.split_like(w.astype(jnp.float32), scale)
    divisor = jnp.maximum(scale.astype(jnp.float32)[..., None, :], jnp.abs(grouped) * 1e-30)
    return grouped / divisor


def mean_magnitude(grouped: Float[Array, "*s g G m"]) -> Float[Array, "*s g m"]:
    """Returns mean|w| of each group, with the same bits in every program, in any layout and on every mesh.

    A reduction is summed in whatever order the compiler finds best for its shape and for what is fused with it, and the
    last bit of a scale that is computed anew at every step decides whether the file holds the trained one. Here sums
    are elementwise, whose order no compiler changes. No gradient passes.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(grouped.astype(jnp.float32)))
    return sum_in_order(magnitude) * np.float32(1 / grouped.shape[-2])


def sum_in_order(x: Float[Array, "*s k m"]) -> Float[Array, "*s m"]:
    """Returns the sum over the axis before the last, by elementwise additions in one order."""
    while x.shape[-2] > 1:
        missing = -x.shape[-2] % _SUMMED_AT_ONCE
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
        x = functools.reduce(jnp.add, jnp.split(padded, _SUMMED_AT_ONCE, axis=-2))
        x = jax.lax.optimization_barrier(x)  # fused with the sums after them, these would be computed again
    return x[..., 0, :]


def absmax(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
    """`max|w| / reach`: nothing is clipped."""
    return jnp.max(jnp.abs(grouped), axis=-2) / grid.reach


def paretoq_reference(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
    """The start in ParetoQ's code: `mean|w|` at 1 bit, `max|w| / reach` otherwise (arXiv 2502.02631)."""
    mean = jnp.mean(jnp.abs(grouped), axis=-2)
    is_binary = jnp.broadcast_to(jnp.asarray(grid.elastic) == 0, mean.shape)
    return jnp.where(is_binary, mean, absmax(grouped, grid))


def mean_multiple(multiple: float) -> ScaleInit:
    """`min(c * mean|w|, max|w|) / reach`: half of all normal weights lie within 0.85 of `mean|w|`, outliers clip."""

    def scale_init(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
        magnitude = jnp.abs(grouped)
        mean = multiple * jnp.mean(magnitude, axis=-2)
        return jnp.minimum(mean, jnp.max(magnitude, axis=-2)) / grid.reach

    return scale_init


def percentile(percent: float) -> ScaleInit:
    """The `percent`-th percentile of |w| over reach: the few largest weights of a group clip."""

    def scale_init(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
        return jnp.quantile(jnp.abs(grouped), percent / 100.0, axis=-2) / grid.reach

    return scale_init


def mean_square_optimal(candidates: int = 35, smallest: float = 0.15) -> ScaleInit:
    """The scale of least squared error `sum (w - w_hat)^2`, one search per group.

    Tries `candidates` fractions of `max|w| / reach` from `smallest` to 1, then one least-squares step at the best
    one's codes, `<w, level> / <level, level>`, kept where it lowers the error (at 1 bit it is exactly `mean|w|`).
    Cost: `candidates` passes over the weights, one at a time in memory.
    """

    def scale_init(grouped: Float[Array, "*s g G m"], grid: AffineGrid) -> Float[Array, "*s g m"]:
        largest = absmax(grouped, grid)
        grid = per_group(grid)

        def levels_at(scale: Float[Array, "*s g m"]) -> Float[Array, "*s g G m"]:
            usable = jnp.maximum(scale, FLOOR)[..., None, :]
            return grid.level(grid.integers(grouped / usable))

        def error_at(scale: Float[Array, "*s g m"]) -> Float[Array, "*s g m"]:
            usable = jnp.maximum(scale, FLOOR)[..., None, :]
            return jnp.sum(jnp.square(grouped - levels_at(scale) * usable), axis=-2)

        def try_fraction(
            best: tuple[Float[Array, "*s g m"], Float[Array, "*s g m"]], fraction: Float[Array, ""]
        ) -> tuple[tuple[Float[Array, "*s g m"], Float[Array, "*s g m"]], None]:
            scale, error = best
            candidate = fraction * largest
            candidate_error = error_at(candidate)
            better = candidate_error < error
            return (jnp.where(better, candidate, scale), jnp.where(better, candidate_error, error)), None

        fractions = jnp.asarray(np.linspace(smallest, 1.0, candidates), jnp.float32)
        (scale, error), _ = jax.lax.scan(try_fraction, (largest, error_at(largest)), fractions)
        levels = levels_at(scale)
        power = jnp.sum(jnp.square(levels), axis=-2)
        refined = jnp.sum(grouped * levels, axis=-2) / jnp.where(power > 0, power, 1.0)
        return jnp.where((power > 0) & (error_at(refined) < error), refined, scale)

    return scale_init


def start(
    w: Float[Array, "..."], granularity: groups.Granularity, scale_init: ScaleInit, grid: AffineGrid
) -> Float[Array, "*s g m"]:
    """Returns the first scale of each group of `w [*s k n]`.

    Raises:
      QuantizerError: a shape that the granularity cannot divide.
    """
    groups.check(w.shape, granularity)
    return scale_init(groups.split(w.astype(jnp.float32), granularity), grid)


SCALE_INITS: dict[str, ScaleInit] = {
    "max": absmax,
    "reference": paretoq_reference,
    "mean": mean_multiple(2.0),
    "percentile": percentile(99.9),
    "mse": mean_square_optimal(),
}
"""The starts that a config can name."""


def by_name(name: str | ScaleInit) -> ScaleInit:
    """Returns the named start; a function is returned as it is.

    Raises:
      QuantizerError: no start has that name.
    """
    if callable(name):
        return name
    if name not in SCALE_INITS:
        raise QuantizerError(f"unknown scale start {name!r}", nearest(name, SCALE_INITS))
    return SCALE_INITS[name]
