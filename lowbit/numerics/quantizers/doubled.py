"""Quantizers whose scales are quantized once more (QLoRA's double quantization)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.errors import QuantizerError
from lowbit.numerics import coded_scales, ste
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.standing import Standing


def doubled(quantizer: Quantizer) -> Quantizer:
    """Returns the quantizer with scales that a file holds as codes of 8 bits (`coded_scales`).

    Example:
      >>> quantizer = doubled(nf4(64))        # 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits a weight
      >>> w_hat = quantizer.fake(w, quantizer.init(w))

    The state is that of `quantizer`; wherever it uses a scale, it finds the one that the codes decode to. A scale that
    learns has the gradient that it has without: it passes the second rounding as it passes the first. Zero points stay
    as they are. Source: arXiv 2305.14314, section 3; its scales are float32 before and after, float16 here.

    Args:
      quantizer: with a float16 scale for each group or each output.

    Raises:
      QuantizerError: any other quantizer, or one whose scales are doubled already.
    """
    if quantizer.granularity in (None, "tensor"):
        raise QuantizerError(
            f"{quantizer.name} has no scales of groups or outputs that could be quantized once more",
            "leave quant.double_quant out, or set quant.granularity to a group size",
        )
    if quantizer.scale_dtype is None or jnp.dtype(quantizer.scale_dtype) != jnp.dtype(coded_scales.DTYPE):
        raise QuantizerError(
            f"scales of {quantizer.name} are not float16, which those that are quantized once more decode to",
            "set quant.scale_dtype=float16, and take another method than onebit",
        )
    if quantizer.doubled:
        raise QuantizerError(f"the scales of {quantizer.name} are codes already", "leave out the second doubling")
    layered = quantizer.at_layer
    return with_coded_scale(quantizer, None if layered is None else lambda index: doubled(layered(index)))


def with_coded_scale(quantizer: Quantizer, at_layer: Callable[[int], Quantizer] | None) -> Quantizer:
    """Returns the quantizer with its state's "scale" coded, and nothing else of the state."""

    def encode(w: Array, state: State) -> QTensor | Array:
        kept = quantizer.encode(w, _with_decoded(state))
        assert isinstance(kept, QTensor)
        return dataclasses.replace(kept, coded_scale=coded_scales.encode(state["scale"]))

    def fake(w: Array, state: State) -> Array:
        return quantizer.fake(w, _with_decoded(state))

    standing, levels = quantizer.standing, quantizer.levels

    def standing_of(w: Array, state: State) -> Standing:
        assert standing is not None
        return standing(w, _with_decoded(state))

    def levels_of(w: Array, state: State) -> Array:
        assert levels is not None
        return levels(w, _with_decoded(state))

    return quantizer._replace(
        name=quantizer.name if quantizer.doubled else f"{quantizer.name}_doubled",
        encode=encode,
        fake=fake,
        at_layer=at_layer,
        standing=None if standing is None else standing_of,
        levels=None if levels is None else levels_of,
        doubled=True,
    )


def _with_decoded(state: State) -> State:
    scale = state["scale"]
    decoded = coded_scales.decode(coded_scales.encode(jax.lax.stop_gradient(scale)))
    return {**state, "scale": ste.passthrough(scale, decoded)}
