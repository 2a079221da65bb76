"""GPFQ: greedy path following, which keeps the layer's outputs close input after input (arXiv 2201.11113)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.numerics.quantizers import Quantizer, State
from lowbit.ptq.gptq import state_of_input
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target


def gpfq_round(path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options) -> Rounded:
    """Input after input, the level that leaves the least error of the outputs so far.

    With y_t the float model's t-th input over all tokens, x_t the quantized model's, and u the error of an output:

      u <- u + w_t y_t,    q_t = Q(<x_t, u> / |x_t|^2),    u <- u - q_t x_t

    Here u is never held: <x_t, u> = sum_{s <= t} <x_t, y_s> w_s - sum_{s < t} <x_t, x_s> q_s takes second moments.
    The masters are the arguments of Q. Unlike GPTQ no later input is looked at; the error is provably bounded where
    inputs are generic. Cost: k^2 n, k steps follow each other; and a second path of activations, the float model's.
    """
    del path, options
    assert moments is not None
    assert target.quantizer is not None
    w_hat, masters, state = gpfq(w, moments.gram, moments.cross, target.quantizer)
    return Rounded(w_hat, masters, state, target.quantizer)


@functools.partial(jit, static_argnames=("quantizer",))
def gpfq(
    w: Float[Array, "k n"], gram: Float[Array, "k k"], cross: Float[Array, "k k"], quantizer: Quantizer
) -> tuple[Any, Any, State]:
    """Rounds one kernel.

    Args:
      w: the kernel.
      gram: mean of x x^T; inputs that never occur keep their weights' own rounding.
      cross: mean of x y^T; equal to `gram` where both paths are one.
      quantizer: what rounds a row.

    Returns:
      (w_hat f32[k n], masters f32[k n], state).
    """
    k, _ = w.shape
    state = quantizer.init(w)

    def round_row(t: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        w_hat, masters = carry
        power = gram[t, t]
        # Rows of w_hat from t on are still 0, those of w are left out.
        seen = jnp.where(jnp.arange(k) <= t, cross[t], 0.0)
        target = jnp.einsum("k,kn->n", seen, w, precision=jax.lax.Precision.HIGHEST)
        done = jnp.einsum("k,kn->n", gram[t], w_hat, precision=jax.lax.Precision.HIGHEST)
        argument = jnp.where(power > 0, (target - done) / jnp.where(power > 0, power, 1.0), w[t])
        rounded = quantizer.fake(argument[None], state_of_input(state, t, k))
        return w_hat.at[t].set(rounded[0]), masters.at[t].set(argument)

    zeros = jnp.zeros_like(w)
    w_hat, masters = jax.lax.fori_loop(0, k, round_row, (zeros, zeros))
    return w_hat, masters, state
