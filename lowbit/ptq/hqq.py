"""HQQ: zero points that make the error of the weights sparse."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.numerics import groups
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target

SHRINK_P, SHRINK_BETA, SHRINK_GROWTH, SHRINK_ROUNDS = 0.7, 10.0, 1.01, 20
"""The norm of the error, the weight of its agreement with the slack variable, its growth a round, and the rounds."""


def hqq_round(path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options) -> Rounded:
    """Half-quadratic quantization: zero points that make the weights' error sparse; no data.

    Minimizes |w - w_hat|_p^p, p = 0.7, so that few weights bear the error, by alternating (with s fixed at min-max)

      e = shrink_p(w - w_hat, beta),    z = mean over the group of (code - (w - e) / s),    beta <- 1.01 beta

    with shrink_p(x, beta) = sign(x) relu(|x| - |x|^(p-1) / beta); the round of least mean |w - w_hat| is kept. Cost: 20
    passes over the weights. Source: https://mobiusml.github.io/hqq_blog; the zero point has any value.
    """
    del path, moments, options
    assert target.quantizer is not None
    w_hat, state = hqq(w, target.quantizer)
    return Rounded(w_hat, w, state, target.quantizer)


@functools.partial(jit, static_argnames=("quantizer",))
def hqq(w: Float[Array, "k n"], quantizer: Quantizer) -> tuple[Float[Array, "k n"], State]:
    """Returns the rounded kernel and the state of a quantizer with a zero point of any value; see `hqq_round`."""
    start = quantizer.init(w)
    scale = jnp.maximum(start["scale"], float(jnp.finfo(jnp.float16).tiny))
    grouped = groups.split_like(w, scale)
    per_tensor = scale.shape[-1] == 1

    def error_of(state: State) -> tuple[Float[Array, "g G n"], Float[Array, "g m"]]:
        difference = grouped - groups.split_like(quantizer.fake(w, state), scale)
        size = jnp.mean(jnp.abs(difference), axis=-2)
        return difference, jnp.mean(size, axis=-1, keepdims=True) if per_tensor else size

    def refine(carry: tuple[State, State, Array], beta: Array) -> tuple[tuple[State, State, Array], None]:
        state, best, least = carry
        difference, _ = error_of(state)
        magnitude = jnp.abs(difference)
        power = jnp.power(jnp.maximum(magnitude, 1e-8), SHRINK_P - 1.0)
        slack = jnp.sign(difference) * jnp.maximum(magnitude - power / beta, 0.0)
        codes = jnp.round((grouped - difference) / scale[..., None, :] + state["zero"][..., None, :])
        zero = jnp.mean(codes - (grouped - slack) / scale[..., None, :], axis=-2)
        zero = jnp.mean(zero, axis=-1, keepdims=True) if per_tensor else zero
        state = {**state, "zero": zero}
        _, size = error_of(state)
        better = size < least
        best = {**best, "zero": jnp.where(better, zero, best["zero"])}
        return (state, best, jnp.where(better, size, least)), None

    betas = jnp.asarray([SHRINK_BETA * SHRINK_GROWTH**i for i in range(SHRINK_ROUNDS)], jnp.float32)
    (_, best, _), _ = jax.lax.scan(refine, (start, start, error_of(start)[1]), betas)
    return quantizer.fake(w, best), best
