"""Granularity: which weights share a scale, and the reshapes that follow from it."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lowbit.errors import QuantizerError

Granularity = Literal["tensor", "channel"] | str | int
"""'tensor': one scale a matrix; 'channel': one an output channel; G: one for every G inputs of an output channel."""


def check_granularity(granularity: object) -> None:
    """Refuses what is no granularity.

    Raises:
      QuantizerError: neither 'tensor' nor 'channel' nor a positive integer.
    """
    if granularity in ("tensor", "channel"):
        return
    if not isinstance(granularity, int) or isinstance(granularity, bool) or granularity < 1:
        raise QuantizerError(
            f"unknown granularity {granularity!r}", "choose 'tensor', 'channel' or a group size of at least 1"
        )


def check(shape: tuple[int, ...], granularity: Granularity) -> None:
    """Refuses a shape that the granularity cannot divide.

    Args:
      shape: `[*s k n]`.
      granularity: see `Granularity`.

    Raises:
      QuantizerError: fewer than two axes, or k not a multiple of the group.
    """
    check_granularity(granularity)
    if len(shape) < 2:
        raise QuantizerError(f"shape {shape} is not a matrix", "quantize arrays [*s k n], or give this parameter None")
    k = shape[-2]
    if isinstance(granularity, int) and k % granularity:
        divisors = [d for d in range(1, k + 1) if k % d == 0]
        close = sorted(sorted(divisors, key=lambda d: abs(d - granularity))[:3])
        raise QuantizerError(
            f"a group of {granularity} does not divide the {k} inputs of shape {shape}",
            f"choose a group size that does, such as {', '.join(map(str, close))}, or 'channel'",
        )


def group_count(shape: tuple[int, ...], granularity: Granularity) -> int:
    """How many groups g lie along the k inputs."""
    check(shape, granularity)
    return shape[-2] // granularity if isinstance(granularity, int) else 1


def split(w: Float[Array, "*s k n"], granularity: Granularity) -> Float[Array, "*s g G m"]:
    """Brings the weights of one scale together along the axis before the last.

    Per tensor, the result is `[*s 1 k*n 1]`, so that a reduction over axis -2 always spans one scale's weights.
    """
    *stacked, k, n = w.shape
    if granularity == "tensor":
        return w.reshape(*stacked, 1, k * n, 1)
    g = group_count(w.shape, granularity)
    return w.reshape(*stacked, g, k // g, n)


def split_like(w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"]) -> Float[Array, "*s g G n"]:
    """Splits k into the groups that `scale` has; m is n, or 1 where one scale serves all outputs."""
    *stacked, k, n = w.shape
    return w.reshape(*stacked, scale.shape[-2], k // scale.shape[-2], n)


def merge(grouped: Shaped[Array, "*s g G n"]) -> Shaped[Array, "*s k n"]:
    """Undoes `split_like`."""
    *stacked, g, group, n = grouped.shape
    return grouped.reshape(*stacked, g * group, n)


def reduce_to(grouped: Float[Array, "*s g G n"], scale: Float[Array, "*s g m"]) -> Float[Array, "*s g m"]:
    """Sums over the weights that share a scale; the transpose of broadcasting the scale to them."""
    total = jnp.sum(grouped, axis=-2)
    if scale.shape[-1] == 1:
        return jnp.sum(total, axis=-1, keepdims=True)
    return total
