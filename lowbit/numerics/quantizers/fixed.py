"""Codes that stay as training finds them, under scales that learn (PEQA, EfficientQAT's E2E-QP)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics import groups, ste
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.quantizers.doubled import with_coded_scale
from lowbit.numerics.standing import Standing


def fixed(quantizer: Quantizer) -> Quantizer:
    """Returns the quantizer with the codes of its first state: only scales, and zero points where it has them, learn.

    Example:
      >>> quantizer = fixed(paretoq(2))
      >>> state = quantizer.init(w)      # {"scale": f32[*s 1 n], "grid": {"scale": f32[*s 1 n]}}
      >>> w_hat = quantizer.fake(w, state)

    The key "grid" of the state holds what made the codes, and is constant: another state of `quantizer`, such as that
    of a trained model, may stand in its place. With levels l of these codes

      w_hat = (l - zero) * scale        scale and zero as the file stores them

    and backward, with the incoming gradient c:

      to scale:  sum over its weights of c * (l - zero)
      to zero:   sum over its weights of -c * scale
      to w:      0

    A zero point that learns is no whole number any more. Source: arXiv 2305.14152, section 3.2 (PEQA); 2407.11062,
    section 3.3 (E2E-QP, which leaves zero points as they are).

    Args:
      quantizer: of weights `(level - zero) * scale`, with a scale that is not computed anew at every step.

    Raises:
      QuantizerError: any other quantizer.
    """
    if quantizer.levels is None or quantizer.scale_dtype is None or quantizer.dynamic or quantizer.fixed:
        raise QuantizerError(
            f"{quantizer.name} has no codes that could be fixed under scales that learn",
            "take paretoq or rtn; the signs of onebit are fixed where its masters are frozen (optimizer.frozen)",
        )
    layered = quantizer.at_layer
    stays = quantizer._replace(
        name=f"{quantizer.name}_fixed",
        init=functools.partial(_init, quantizer),
        encode=functools.partial(_encode, quantizer),
        fake=functools.partial(_fake, quantizer),
        at_layer=None if layered is None else lambda index: fixed(layered(index)),
        standing=functools.partial(_standing, quantizer),
        levels=None,
        fixed=True,
    )
    # What made the codes is doubled by itself; so is the scale that learns.
    return with_coded_scale(stays, stays.at_layer) if quantizer.doubled else stays


def _init(quantizer: Quantizer, w: Float[Array, "..."]) -> State:
    start = quantizer.init(w)
    return {**{key: leaf for key, leaf in start.items() if key != "grid"}, "grid": start}


def _stored(quantizer: Quantizer, state: State) -> tuple[Array, Array | None]:
    """Scale and zero point as the file holds them, in float32; gradients pass unchanged."""
    assert quantizer.scale_dtype is not None
    scale = ste.stored_scale(state["scale"], quantizer.scale_dtype)
    if "zero" not in state:
        return scale, None
    kept = jax.lax.stop_gradient(state["zero"]).astype(quantizer.scale_dtype).astype(jnp.float32)
    return scale, ste.passthrough(state["zero"], kept)


def _fake(quantizer: Quantizer, w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
    return _decoded(quantizer, w, state["grid"], *_stored(quantizer, state))


def _encode(quantizer: Quantizer, w: Float[Array, "*s k n"], state: State) -> QTensor:
    kept, (scale, zero) = quantizer.encode(w, state["grid"]), _stored(quantizer, state)
    assert isinstance(kept, QTensor)
    return dataclasses.replace(
        kept,
        scale=scale.astype(quantizer.scale_dtype),
        zero=None if zero is None else zero.astype(quantizer.scale_dtype),
    )


def _standing(quantizer: Quantizer, w: Float[Array, "*s k n"], state: State) -> Standing:
    """Codes and clipping are those of the start, the drift is that of the learned scale."""
    assert quantizer.standing is not None
    start = state["grid"]
    first, now = (quantizer.standing(w, s) for s in (start, {**start, "scale": state["scale"]}))
    return Standing(first.codes, first.clipped, now.drift)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decoded(
    quantizer: Quantizer,
    w: Float[Array, "*s k n"],
    start: State,
    scale: Float[Array, "*s g m"],
    zero: Float[Array, "*s g m"] | None,
) -> Float[Array, "*s k n"]:
    """`(level - zero) * scale` of the codes that `start` gives w; the backward pass finds the levels again."""
    return groups.merge(_offsets(quantizer, w, start, scale, zero) * scale[..., None, :]).astype(w.dtype)


def _offsets(quantizer: Quantizer, w: Array, start: State, scale: Array, zero: Array | None) -> Array:
    assert quantizer.levels is not None
    levels = groups.split_like(quantizer.levels(w, start), scale)
    return levels if zero is None else levels - zero[..., None, :]


def _decoded_fwd(quantizer: Quantizer, *arguments: Any) -> tuple[Array, Any]:
    return _decoded(quantizer, *arguments), arguments


def _decoded_bwd(quantizer: Quantizer, arguments: Any, cotangent: Array) -> tuple[Array, State, Array, Array | None]:
    w, start, scale, zero = arguments
    c = groups.split_like(cotangent.astype(jnp.float32), scale)
    grad_scale = groups.reduce_to(c * _offsets(quantizer, w, start, scale, zero), scale)
    grad_zero = None if zero is None else groups.reduce_to(-c * scale[..., None, :], scale)
    return jnp.zeros_like(w), jax.tree.map(jnp.zeros_like, start), grad_scale, grad_zero


_decoded.defvjp(_decoded_fwd, _decoded_bwd)
