"""Sign-value independent decomposition: a matrix as its signs and two vectors of values (OneBit, arXiv 2402.11295).

`W ~ sign(W) * a b^T`, where `a b^T` is the rank-one approximation of |W| of least squared error. As |W| has no negative
entry, that is the first term of its singular value decomposition, both vectors of one sign, and at the same time its
non-negative factorization of rank one: the two ways below find the same product. The vectors share the size of the
product equally, `|a| = |b|`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError, nearest

SWEEPS = 32
"""Of `by_nmf`. A sweep lowers the rest by the square of the second singular value over the first: to about 1/25 for
24 x 96 weights of a normal distribution, and to less for larger matrices."""

Vectors = tuple[Float[Array, "*s k"], Float[Array, "*s n"]]
Start = Callable[[Float[Array, "*s k n"]], Vectors]
"""Magnitudes -> what is multiplied along the inputs, and along the outputs."""


def by_svd(magnitude: Float[Array, "*s k n"]) -> Vectors:
    """Returns the vectors from a whole singular value decomposition: exact, and cubic in the smaller side."""
    u, s, v = jnp.linalg.svd(magnitude, full_matrices=False)
    root = jnp.sqrt(s[..., :1])
    return jnp.abs(u[..., :, 0]) * root, jnp.abs(v[..., 0, :]) * root


def by_nmf(magnitude: Float[Array, "*s k n"]) -> Vectors:
    """Returns the vectors by alternating least squares from ones: products of the matrix with vectors alone.

    At rank one, an exact step for one vector, the other fixed, stays non-negative by itself, and is also the step of
    the multiplicative rule of Lee and Seung: `a <- A b / (b b)`, `b <- a A / (a a)`.
    """
    ones = jnp.ones_like(magnitude[..., 0, :])

    def inputs(b: Float[Array, "*s n"]) -> Float[Array, "*s k"]:
        return _divided(jnp.einsum("...kn,...n->...k", magnitude, b, precision="highest"), b)

    def sweep(_: object, b: Float[Array, "*s n"]) -> Float[Array, "*s n"]:
        a = inputs(b)
        return _divided(jnp.einsum("...kn,...k->...n", magnitude, a, precision="highest"), a)

    b = jax.lax.fori_loop(0, SWEEPS, sweep, ones)
    return _balanced(inputs(b), b)


def mean_magnitude(magnitude: Float[Array, "*s k n"]) -> Vectors:
    """Returns the mean magnitude of each output, and no difference between inputs: one scale a channel."""
    mean = jnp.mean(magnitude, axis=-2)
    return _balanced(jnp.ones_like(magnitude[..., :, 0]), mean)


STARTS: dict[str, Start] = {"mse": by_nmf, "nmf": by_nmf, "svd": by_svd, "mean": mean_magnitude}
"""The starts that a config can name; "mse", least squared error, is what `by_nmf` finds."""


def by_name(name: str) -> Start:
    """Returns the named start; raises QuantizerError where there is none."""
    if name not in STARTS:
        raise QuantizerError(f"unknown start {name!r} of the two value vectors", nearest(name, STARTS))
    return STARTS[name]


def _divided(product: Float[Array, "*s m"], other: Float[Array, "*s l"]) -> Float[Array, "*s m"]:
    power = jnp.sum(jnp.square(other), axis=-1, keepdims=True)
    return product / jnp.where(power > 0, power, 1.0)


def _balanced(a: Float[Array, "*s k"], b: Float[Array, "*s n"]) -> Vectors:
    """The same product with two vectors of the same length."""
    lengths = [jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) for x in (a, b)]
    of_a, of_b = (jnp.where(length > 0, length, 1.0) for length in lengths)
    return a * jnp.sqrt(of_b / of_a), b * jnp.sqrt(of_a / of_b)
