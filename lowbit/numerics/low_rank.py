"""Products of low rank, added to a matrix: in an order that every reader of a packed file can repeat bit for bit.

The factors are numbers of 16 bits, whose products are exact in float32. Only the additions round, and they are made in
one order, rank after rank: whether a compiler fuses a product with its addition changes nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.numerics import ste

TERMS_AT_A_TIME = 16
"""Ranks that one pass over the matrix adds: a compiler makes one loop of them."""

_LARGEST = float(jnp.finfo(jnp.float32).max)


class Factors(NamedTuple):
    """A matrix of low rank as two factors, whose product it is.

    Attributes:
      a: `[*s k r]`.
      b: `[*s r n]`.
    """

    # Not annotated as arrays: jax rebuilds tuples around stand-ins for them.
    a: Any
    b: Any


def halved(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns what a file of float16 numbers holds of x, as float32; gradients pass unchanged."""
    return ste.passthrough(x, jax.lax.stop_gradient(half(x)).astype(jnp.float32))


def half(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds to float16; what is beyond it becomes its largest number."""
    largest = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(x.astype(jnp.float32), -largest, largest).astype(jnp.float16)


@jax.custom_vjp
def product(a: Float[Array, "*s k r"], b: Float[Array, "*s r n"]) -> Float[Array, "*s k n"]:
    """Returns `((a_0 b_0 + a_1 b_1) + a_2 b_2) + ...` in float32, of values that float16 holds.

    Each term `[k n]` is the outer product of a column of a with a row of b. Gradients are those of a matrix product.
    """
    rank = a.shape[-1]
    columns = jnp.moveaxis(a.astype(jnp.float32), -1, 0)[..., None]  # [r *s k 1]
    rows = jnp.moveaxis(b.astype(jnp.float32), -2, 0)[..., None, :]  # [r *s 1 n]
    first = columns[0] * rows[0]

    def add(total: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + term[0] * term[1], None

    total, _ = jax.lax.scan(add, first, (columns[1:], rows[1:]), unroll=max(1, min(rank - 1, TERMS_AT_A_TIME)))
    return total


def _product_fwd(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(a, b), (a, b)


def _product_bwd(kept: tuple[jax.Array, jax.Array], c: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = kept
    to_a = jnp.matmul(c, jnp.swapaxes(b, -1, -2).astype(c.dtype))
    to_b = jnp.matmul(jnp.swapaxes(a, -1, -2).astype(c.dtype), c)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


product.defvjp(_product_fwd, _product_bwd)


def plus(base: Float[Array, "*s k n"], a: Float[Array, "*s k r"], b: Float[Array, "*s r n"]) -> Float[Array, "*s k n"]:
    """Returns `base + product(a, b)`, base rounded to float32 before: as two compilers or numpy would have it.

    A base that is a product itself, a level times its scale, could be fused with the addition and not be rounded. What
    is limited between the two, here to what float32 holds anyway, cannot.
    """
    return jnp.clip(base, -_LARGEST, _LARGEST) + product(a, b)


def principal(w: Float[Array, "*s k n"], rank: int) -> Factors:
    """Returns the factors of the matrix of `rank` that is nearest to w: of its SVD, `U sqrt(S)` and `sqrt(S) V`."""
    u, s, v = jnp.linalg.svd(w, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    return Factors(u[..., :rank] * root[..., None, :], root[..., :, None] * v[..., :rank, :])
