"""Scales that move between a layer's parts without changing what it computes, so that kernels round better.

What a kernel reads is divided by s, input by input, where it arises, and the kernel's rows are multiplied by s.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics.quantizers import Quantizer
from lowbit.ptq.method import Options
from lowbit.ptq.moments import Moments, output_error
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target

RATIOS = tuple(i / 20 for i in range(20))
"""Exponents of the mean magnitude that AWQ tries; 0 folds nothing."""

LEAST = 1e-4
"""The smallest scale folded, before normalization."""


class Place(NamedTuple):
    """Where a scale can be folded.

    Attributes:
      source: paths of what is divided, over its last axis: a norm's scale, or a kernel (and its bias) that feeds on.
      readers: paths of the kernels that read it.
    """

    source: tuple[str, ...]
    readers: tuple[str, ...]


NORMS = (
    Place(("attn_norm/scale",), ("attn/q_proj/kernel", "attn/k_proj/kernel", "attn/v_proj/kernel")),
    Place(("mlp_norm/scale",), ("mlp/gate_proj/kernel", "mlp/up_proj/kernel")),
)

# What down_proj reads is silu(gate) * up: linear in up alone.
KERNELS = (Place(("mlp/up_proj/kernel",), ("mlp/down_proj/kernel",)),)

# A value head of several query heads is read at several places, whose scales would have to agree.
VALUES = (Place(("attn/v_proj/kernel", "attn/v_proj/bias"), ("attn/o_proj/kernel",)),)


def fold(flat: dict[str, Array], place: Place, s: Float[Array, " k"]) -> dict[str, Array]:
    """Returns the flat layer with s [k] folded at a place; its function is the same, up to float32 rounding."""
    changed = dict(flat)
    for path in place.source:
        if path in flat:  # not every family has biases
            changed[path] = flat[path] / s.reshape((1,) * (flat[path].ndim - 1) + s.shape)
    for path in place.readers:
        changed[path] = flat[path] * s[:, None]
    return changed


def smoothquant_fold(
    flat: dict[str, Array],
    moments: dict[str, Moments],
    targets: Mapping[str, Target],
    options: Options,
    multi_head: bool,
) -> dict[str, Array]:
    """SmoothQuant (arXiv 2211.10438, eq. 4): outliers of activations move into weights, wherever a scale can be folded.

      s = max|x|^alpha / max|w|^(1 - alpha)    for each input, w over all kernels that read it

    The paper folds at the two norms of a layer. Here also between up and down, whose input has by far the largest
    outliers of a gated MLP: without it, SmolLM2-135M loses three times as much with a scale a token, and most of what
    it knows with static ranges. alpha 0.5 balances both. Made for 8-bit activations: of the weights alone it makes the
    rounding harder, not easier. Cost: one pass of activations.
    """
    del targets, multi_head
    for place in (*NORMS, *KERNELS):
        reach = moments[place.readers[0]].max_abs
        weight = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(flat[path]), axis=1) for path in place.readers])
        s = jnp.power(jnp.maximum(reach, LEAST), options.alpha) / jnp.power(
            jnp.maximum(weight, LEAST), 1.0 - options.alpha
        )
        flat = fold(flat, place, jnp.maximum(s, LEAST))
    return flat


def check_alpha(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Raises QuantizerError where alpha is no share."""
    del target, inputs
    if not 0.0 <= options.alpha <= 1.0:
        raise QuantizerError(f"an alpha of {options.alpha:g}", "give a share from 0 to 1, such as 0.5")


def awq_fold(
    flat: dict[str, Array],
    moments: dict[str, Moments],
    targets: Mapping[str, Target],
    options: Options,
    multi_head: bool,
) -> dict[str, Array]:
    """AWQ (arXiv 2306.00978, section 3.2): inputs of large magnitude get scales that protect their weights.

      s = mean|x|^r / sqrt(max s min s),    r the one of 20 whose rounded kernels err least on the inputs

    at the norms, between up and down, and between v and o where each query head has a value head of its own. The error
    is that of the kernels' outputs, from second moments (the reference code runs the attention or MLP whole). Cost: one
    pass of activations, and 20 roundings with a product k^2 n each.
    """
    del options
    for place in (*NORMS, *KERNELS, *(VALUES if multi_head else ())):
        seen = moments[place.readers[0]]
        kernels = tuple(flat[path] for path in place.readers)
        quantizers = tuple(targets[path].quantizer for path in place.readers)
        flat = fold(flat, place, awq_scale(kernels, seen.gram, seen.mean_abs, quantizers))
    return flat


@functools.partial(jit, static_argnames=("quantizers",))
def awq_scale(
    kernels: tuple[Float[Array, "..."], ...],
    gram: Float[Array, "k k"],
    mean_abs: Float[Array, " k"],
    quantizers: tuple[Quantizer, ...],
) -> Float[Array, " k"]:
    """Returns the scale of least error for kernels [k n] that read the same inputs, a quantizer for each."""

    def scale(ratio: Float[Array, ""]) -> Float[Array, " k"]:
        s = jnp.maximum(jnp.power(mean_abs, ratio), LEAST)
        return s / jnp.sqrt(jnp.max(s) * jnp.min(s))

    def loss(ratio: Float[Array, ""]) -> Float[Array, ""]:
        s = scale(ratio)[:, None]
        rounded = [q.fake(w * s, q.init(w * s)) / s for w, q in zip(kernels, quantizers, strict=True)]
        errors = [output_error(gram, w - w_hat) for w, w_hat in zip(kernels, rounded, strict=True)]
        return sum((jnp.sum(error) for error in errors), start=jnp.float32(0))

    ratios = jnp.asarray(RATIOS, jnp.float32)
    return scale(ratios[jnp.argmin(jax.lax.map(loss, ratios))])
