"""AWQ's second half: ranges of groups that clip where that lowers the error of the outputs."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.numerics import groups
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.nearest import nearest
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target

SHARES = tuple(1.0 - i / 20 for i in range(10))
"""Of max|w| of a group, at which ranges are tried."""

UNCLIPPED = ("attn/q_proj/kernel", "attn/k_proj/kernel")
"""Their product makes the softmax, where errors of outputs say little (as in the reference code)."""


def awq_round(path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options) -> Rounded:
    """Rounds to nearest over the range that errs least on the inputs of each group (AWQ, arXiv 2306.00978).

    `folding.awq_fold` comes first. The error of a group counts its own inputs alone. Cost: 10 roundings with a product
    k G n each, G the group.
    """
    del options
    assert moments is not None
    assert target.quantizer is not None
    if path in UNCLIPPED or target.granularity == "tensor":
        w_hat, state = nearest(w, target.quantizer)
    else:
        w_hat, state = clipped(w, moments.gram, target.quantizer)
    return Rounded(w_hat, w, state, target.quantizer)


@functools.partial(jit, static_argnames=("quantizer",))
def clipped(
    w: Float[Array, "k n"], gram: Float[Array, "k k"], quantizer: Quantizer
) -> tuple[Float[Array, "k n"], State]:
    """Returns the rounded kernel and the state whose groups clip at the best of `SHARES`."""
    k, n = w.shape
    start = quantizer.init(w)
    g = start["scale"].shape[0]
    grouped = w.reshape(g, k // g, n)
    largest = jnp.max(jnp.abs(grouped), axis=1, keepdims=True)
    index = jnp.arange(g)
    own_gram = gram.reshape(g, k // g, g, k // g)[index, :, index, :]

    def error_of(state: State) -> Float[Array, "g n"]:
        difference = grouped - groups.split_like(quantizer.fake(w, state), state["scale"])
        seen = jnp.einsum("gij,gjn->gin", own_gram, difference, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(difference * seen, axis=1)

    def attempt(best: tuple[State, Array], share: Array) -> tuple[tuple[State, Array], None]:
        limit = share * largest
        state = quantizer.init(groups.merge(jnp.clip(grouped, -limit, limit)))
        error = error_of(state)
        better = error < best[1]
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), state, best[0])
        return (kept, jnp.where(better, error, best[1])), None

    (state, _), _ = jax.lax.scan(attempt, (start, error_of(start)), jnp.asarray(SHARES, jnp.float32))
    return quantizer.fake(w, state), state
