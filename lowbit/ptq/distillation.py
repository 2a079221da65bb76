"""Kernels that learn, one after another, to give the outputs of the float kernel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.numerics import groups
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments, output_error
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target

STEPS = 200
RATE = 0.05
"""Of Adam at its first step, in steps of the grid; a cosine takes it to 0."""
B1, B2, EPSILON = 0.9, 0.999, 1e-12


def distilled_round(
    path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options
) -> Rounded:
    """Layer-by-layer distillation (ZeroQuant's LKD, arXiv 2206.01861, section 3.3), a kernel at a time.

    Masters m, starting at w, descend by Adam on

      L(m) = trace((w - w_hat(m))^T H (w - w_hat(m)))    w_hat(m) the rounded masters, H = mean of x x^T

    which is the squared distance of the outputs on calibration, all batches at once; the gradient passes the rounding,
    and the rounded kernel of least L is kept. Scales stay where they begin. The paper takes a whole layer's output
    on the layers before, quantized; here each kernel answers for its own on the inputs that the quantized stages before
    it give, so that second moments suffice. Cost: 200 products k^2 n, and as many roundings.
    """
    del path, options
    assert moments is not None
    assert target.quantizer is not None
    state = target.quantizer.init(w)
    masters, w_hat = distill(w, moments.gram, state, target.quantizer)
    return Rounded(w_hat, masters, state, target.quantizer)


@functools.partial(jit, static_argnames=("quantizer",))
def distill(
    w: Float[Array, "k n"], gram: Float[Array, "k k"], state: State, quantizer: Quantizer
) -> tuple[Float[Array, "k n"], Float[Array, "k n"]]:
    """Returns (masters, rounded kernel) of the least error that descent has met; see `distilled_round`."""
    split = groups.split_like(w, state["scale"])
    unit = groups.merge(jnp.broadcast_to(state["scale"].astype(w.dtype)[..., None, :], split.shape))
    # A loss near 1 for one error of a step in every weight keeps Adam's epsilon out of the way.
    usual = jnp.maximum(jnp.sum(output_error(gram, unit)), jnp.finfo(jnp.float32).tiny)

    def loss(moved: Float[Array, "k n"]) -> Float[Array, ""]:
        w_hat = quantizer.fake(w + unit * moved, state)
        return jnp.sum(output_error(gram, w - w_hat)) / usual

    def step(carry: Any, now: tuple[Array, Array]) -> tuple[Any, None]:
        moved, first, second, best, least = carry
        count, rate = now
        error, gradient = jax.value_and_grad(loss)(moved)
        best, least = jnp.where(error < least, moved, best), jnp.minimum(error, least)
        first = B1 * first + (1 - B1) * gradient
        second = B2 * second + (1 - B2) * jnp.square(gradient)
        mean, size = first / (1 - jnp.power(B1, count)), jnp.sqrt(second / (1 - jnp.power(B2, count)))
        return (moved - rate * mean / (size + EPSILON), first, second, best, least), None

    still, rates = jnp.zeros_like(w), RATE * (1 + jnp.cos(jnp.linspace(0, jnp.pi, STEPS))) / 2
    carry, counts = (still, still, still, still, jnp.float32(jnp.inf)), jnp.arange(1, STEPS + 1, dtype=jnp.float32)
    (_, _, _, best, _), _ = jax.lax.scan(step, carry, (counts, rates))
    masters = w + unit * best
    return masters, quantizer.fake(masters, state)
