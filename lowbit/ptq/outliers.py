"""LLM.int8: inputs with outliers keep 16-bit weights, all others get 8 bits (arXiv 2208.07339)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.nearest import nearest
from lowbit.ptq.target import Target


def check_threshold(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Raises QuantizerError where the threshold is no magnitude; infinity leaves nothing out."""
    del target, inputs
    if not options.threshold >= 0.0:
        raise QuantizerError(f"a threshold of {options.threshold:g}", "give a magnitude of 0 or more, such as 6")


def outlier_round(
    path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options
) -> Rounded:
    """Rows of inputs whose magnitude ever exceeds the threshold (6.0) stay float16; the rest is rounded to nearest.

    The weights' half of the method: activations are not rounded here. Scales are those of the rows that are rounded.
    Bits count the codes, the scales, 16 for each weight that stays and 32 for the index of its row. Cost: one pass of
    activations. Source: arXiv 2208.07339, section 3.2.
    """
    del path
    assert moments is not None
    assert target.quantizer is not None
    k, n = w.shape
    outlier = moments.max_abs > options.threshold
    rest, state = nearest(jnp.where(outlier[:, None], 0.0, w), target.quantizer)
    kept = jnp.where(outlier[:, None], w.astype(jnp.float16).astype(jnp.float32), rest)
    share = float(jnp.mean(outlier.astype(jnp.float32)))
    assert target.quantizer.grid is not None
    scales = sum(leaf.size for leaf in state.values())
    bits = (1.0 - share) * target.quantizer.grid.storage_bits + share * (16.0 + 32.0 / n) + 16.0 * scales / (k * n)
    return Rounded(kept, kept, {}, None, bits=bits)
