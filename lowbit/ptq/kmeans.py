"""Levels learned from the weights of one matrix: weight sharing by k-means (Deep Compression, arXiv 1510.00149)."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.numerics import groups, scales
from lowbit.numerics.quantizers.codebook import codebook
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.programs import jit
from lowbit.ptq.target import SCALE_DTYPE, Target

ROUNDS = 40
"""Of Lloyd's algorithm; in one dimension it has settled by then."""


def kmeans_round(
    path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options
) -> Rounded:
    """One codebook of 2^bits values a matrix, in units of max|w| of each scale's weights (arXiv 1510.00149, section 3).

    Centroids start at equal distances, which the paper finds best, and move to the means of their weights. With one
    scale a tensor it is the paper's weight sharing. Needs no data. Cost: a sort of the weights.
    """
    del path, moments, options
    scale = scales.stored(jnp.max(jnp.abs(groups.split(w, target.granularity)), axis=-2), SCALE_DTYPE)
    levels = np.unique(np.asarray(centroids(scales.in_units_of(scale, w).reshape(-1), target.levels)))
    if len(levels) < 2:  # a matrix of one value
        levels = np.asarray([levels[0], levels[0] + np.float32(1)], np.float32)
    # Grids go by name in a file, and each matrix has its own.
    name = f"kmeans{target.levels}_{hashlib.sha256(levels.tobytes()).hexdigest()[:12]}"
    quantizer = codebook(name, tuple(map(float, levels)), target.granularity, SCALE_DTYPE)
    state = {"scale": scale}
    return Rounded(quantizer.fake(w, state), w, state, quantizer)


@functools.partial(jit, static_argnames=("count",))
def centroids(values: Float[Array, " m"], count: int) -> Float[Array, " count"]:
    """Returns the means of the best found partition of numbers into `count` intervals; an empty one keeps its place."""
    ordered = jnp.sort(values)
    # Sums of any interval are differences; in float32 of a million terms they need a mean near 0, as weights have.
    sums = jnp.concatenate([jnp.zeros((1,), jnp.float32), jnp.cumsum(ordered)])

    def move(levels: Float[Array, " count"], _: None) -> tuple[Float[Array, " count"], None]:
        inner = jnp.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        ends = jnp.concatenate([jnp.zeros((1,), inner.dtype), inner, jnp.full((1,), values.size, inner.dtype)])
        members = (ends[1:] - ends[:-1]).astype(jnp.float32)
        means = (sums[ends[1:]] - sums[ends[:-1]]) / jnp.maximum(members, 1.0)
        return jnp.where(members > 0, means, levels), None

    start = jnp.linspace(ordered[0], ordered[-1], count, dtype=jnp.float32)
    levels, _ = jax.lax.scan(move, start, None, length=ROUNDS)
    return jnp.sort(levels)
