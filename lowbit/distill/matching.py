"""Losses between the insides of two models: hidden states, and how positions relate.

`outputs_and_insides` has Flax hand out what modules return anyway, so the model knows nothing of these losses.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from lowbit.distill.losses import Outputs
from lowbit.models.chunks import cut

RELATIONS = ("q_proj", "k_proj", "v_proj")
_STATES = "layers"
_SMALLEST_NORM = 1e-6
_UNSEEN = -1e30


class Insides(NamedTuple):
    """What a forward pass leaves behind besides its outputs; None for what was not asked for.

    Attributes:
      states: `[L b t d]`, the residual stream behind each layer.
      projections: queries, keys and values of one layer before rotation, each `[b t heads h]`.
    """

    states: Any
    projections: Any


def outputs_and_insides(
    model: nn.Module, variables: Any, tokens: jax.Array, *, states: bool, layer: int | None
) -> tuple[Outputs, Insides]:
    """Runs a `lowbit.models.Transformer` on tokens i32[b t].

    Args:
      model: it.
      variables: its collections.
      tokens: its input.
      states: whether hidden states are asked for.
      layer: whose queries, keys and values are; None for those of no layer.
    """
    wanted = ((_STATES,) if states else ()) + (RELATIONS if layer is not None else ())
    if not wanted:
        return Outputs(*_applied(model, variables, tokens)), Insides(None, None)
    outputs, kept = _applied(
        model,
        variables,
        tokens,
        capture_intermediates=lambda module, _: module.name in wanted,
        mutable=["intermediates"],
    )
    layers = kept["intermediates"]["layers"]
    projections = None
    if layer is not None:
        cfg: Any = getattr(model, "cfg")  # noqa: B009  (nn.Module does not declare it)
        projections = tuple(
            layers["attn"][name]["__call__"][0][layer].reshape(*tokens.shape, -1, cfg.head_dim) for name in RELATIONS
        )
    return Outputs(*outputs), Insides(layers["__call__"][0][0] if states else None, projections)


def _applied(model: nn.Module, variables: Any, tokens: jax.Array, **options: Any) -> Any:
    return model.apply(variables, tokens, method="hidden_and_head", **options)


def hidden_distance(own: Float[Array, "L b t d"], wise: Float[Array, "L b t d"]) -> Float32[Array, ""]:
    """Returns `sum_i mean_t |h_i / |h_i| - g_i / |g_i||^2`, h the student's states and g the teacher's.

    Layers 1 to L-1 count: the last state is what the divergence of the logits sees. OneBit's loss (arXiv 2402.11295)
    also counts the embedding's output, which is left out here: both models look up nearly the same rows.
    """
    apart = jnp.square(_unit(own[:-1]) - _unit(wise[:-1]))
    return jnp.sum(jnp.mean(jnp.sum(apart, axis=-1), axis=(1, 2)))


def relation_divergence(
    own: Float[Array, "b t heads h"], wise: Float[Array, "b t heads j"], chunks: int
) -> Float32[Array, ""]:
    """Returns the mean KL of how positions relate, teacher against student, in nats per position and head.

    The relation of position i is softmax_j(x_i x_j / sqrt(h)) over j <= i, with x queries, or keys, or values
    (MiniLMv2, arXiv 2012.15828; there without the causal mask). Widths of heads may differ, their number not.
    Positions are visited in `chunks`, and what a chunk holds, f32[b heads t/chunks t], is made again in the backward
    pass.
    """
    t = own.shape[1]

    @jax.checkpoint
    def turn(piece: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        own_rows, wise_rows, places = piece
        seen = jnp.arange(t)[None, :] <= places[0][:, None]
        log_p, log_q = _relation(own_rows, own, seen), _relation(wise_rows, wise, seen)
        return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)

    places = cut(jnp.arange(t)[None, :], chunks)
    return jnp.mean(jax.lax.map(turn, (cut(own, chunks), cut(wise, chunks), places)))


def _relation(rows: jax.Array, all_rows: jax.Array, seen: jax.Array) -> Float32[Array, "b heads q t"]:
    scores = jnp.einsum("bqhe,bthe->bhqt", rows, all_rows, preferred_element_type=jnp.float32)
    # Finite, so that what is not seen has a probability of 0, and neither a NaN nor a gradient.
    return jax.nn.log_softmax(jnp.where(seen[None, None], scores * rows.shape[-1] ** -0.5, _UNSEEN))


def _unit(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    size = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + _SMALLEST_NORM**2)
    return wide / size
