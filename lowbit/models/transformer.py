"""The Llama-family decoder in Flax: one block under one scan.

The model knows nothing of quantization. `transform(module_cls, prefix) -> module_cls` is applied to the class of
each part that owns parameters, with the path of that part as prefix, and whatever it returns takes the part's
place under the same name. Inside the scan a transform sees the variables of one layer, without the layer axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lowbit.errors import ModelError, nearest
from lowbit.llama import LlamaConfig
from lowbit.models.attention import (
    causal_attention,
    document_positions,
    resolve_attention,
    rotary_tables,
    rotate,
)
from lowbit.models.layers import (
    INIT_STDDEV,
    PACKED,
    UNTOUCHED,
    ActivationHooks,
    Dense,
    DotGeneral,
    Embed,
    Head,
    OnHeads,
    RMSNorm,
    untransformed,
)
from lowbit.models.placement import by_rows, gathered

RematPolicy = Literal["none", "full", "dots"]
Transform = Callable[[Any, str], Any]

# Collections that hold one entry a layer: what is trained, what a quantizer learns, what it is told, what is watched,
# what stands in the place of kernels.
LAYERED_COLLECTIONS: Mapping[Any, Any] = {"params": 0, "quant": 0, "grid": 0, "intermediates": 0, PACKED: 0}


class Projections(nn.Module):
    """What stands before and behind the mixing of positions, whichever way positions are mixed."""

    cfg: LlamaConfig
    dtype: DTypeLike
    dot_general: DotGeneral
    hooks: ActivationHooks

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries [b t heads h], keys and values [b t kv_heads h], not turned by their positions."""
        cfg = self.cfg

        def heads(name: str, count: int) -> jax.Array:
            features = count * cfg.head_dim
            dense = Dense(
                features, self.dtype, cfg.qkv_bias, self.dot_general, norm=cfg.linear_norm, hooks=self.hooks, name=name
            )
            return dense(x).reshape(*x.shape[:-1], count, cfg.head_dim)

        return heads("q_proj", cfg.num_heads), heads("k_proj", cfg.num_kv_heads), heads("v_proj", cfg.num_kv_heads)

    def combine(self, mixed: jax.Array) -> jax.Array:
        """[b t heads h] -> [b t d], to be added to the residual stream."""
        dense = _into_residual(self.cfg, self.dtype, self.dot_general, self.hooks, "o_proj")
        return dense(mixed.reshape(*mixed.shape[:2], -1))


class Attention(Projections):
    """Grouped-query causal self-attention with rotary positions: [b t d] -> [b t d]."""

    implementation: Literal["xla", "cudnn"]

    @nn.compact
    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns [b t d]; cos and sin as `rotate` takes them, mask as `causal_attention` does."""
        hooks = self.hooks
        q, k, v = self.project(x)
        k = _on_heads(hooks.rotated_keys, rotate(_on_heads(hooks.keys, k), cos, sin))
        mixed = causal_attention(rotate(q, cos, sin), k, _on_heads(hooks.values, v), self.implementation, mask)
        return self.combine(mixed)


class MLP(nn.Module):
    """Gated MLP (SwiGLU, arXiv 2002.05202): down(silu(gate(x)) * up(x)), [b t d] -> [b t d]."""

    cfg: LlamaConfig
    dtype: DTypeLike
    dot_general: DotGeneral
    hooks: ActivationHooks

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b t d]."""

        def hidden(name: str) -> jax.Array:
            width, norm = self.cfg.intermediate_size, self.cfg.linear_norm
            return Dense(width, self.dtype, False, self.dot_general, norm=norm, hooks=self.hooks, name=name)(x)

        gated = nn.silu(hidden("gate_proj")) * hidden("up_proj")
        return _into_residual(self.cfg, self.dtype, self.dot_general, self.hooks, "down_proj")(gated)


class Block(nn.Module):
    """One decoder layer, pre-norm: [b t d] -> [b t d]. The None beside the result is what `nn.scan` stacks."""

    cfg: LlamaConfig
    dtype: DTypeLike = jnp.float32
    implementation: Literal["xla", "cudnn"] = "xla"
    dot_general: DotGeneral = jax.lax.dot_general
    hooks: ActivationHooks = UNTOUCHED

    @nn.compact
    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, None]:
        """Returns ([b t d], None); cos and sin as `rotate` takes them, mask as `causal_attention` does."""
        cfg, dtype = self.cfg, self.dtype
        x = by_rows(x)
        attention = Attention(cfg, dtype, self.dot_general, self.hooks, self.implementation, name="attn")
        x = x + attention(RMSNorm(cfg.rms_norm_eps, dtype, name="attn_norm")(x), cos, sin, mask)
        mlp = MLP(cfg, dtype, self.dot_general, self.hooks, name="mlp")
        return x + mlp(RMSNorm(cfg.rms_norm_eps, dtype, name="mlp_norm")(x)), None


class Transformer(nn.Module):
    """A decoder of the Llama family: tokens i32[b t] -> logits f32[b t V].

    Attributes:
      cfg: sizes and constants.
      dtype: dtype of activations and matmuls. Parameters, norms, rotary angles, softmax and logits are float32.
      remat: what the backward pass computes again. "none" keeps all; "dots" keeps the results of matmuls with
        weights and of cuDNN's attention, so that elementwise work (fake-quantized weights too) is redone; "full"
        keeps a layer's input.
      attention: "xla", "cudnn", or "auto": cuDNN's fused kernel where it runs.
      transform: rewrites the classes that own parameters: `transform(Block, "layers")`, `(Embed, "embed")`,
        `(RMSNorm, "norm")`, `(Head, "lm_head")`. A transform that rewrites variables makes the model apply-only.
      dot_general: what multiplies activations with the kernels of the blocks.
      hooks: what happens to the activations of the blocks, such as rounding (`lowbit.models.activations`).
      separator: id of the token between the documents of a window. With it, tokens attend inside their own document
        and count their positions from its start (`document_positions`); None attends over the whole window.

    Raises:
      ModelError: an unknown remat policy or attention, or an attention that cannot run here.
    """

    cfg: LlamaConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    transform: Transform = untransformed
    dot_general: DotGeneral = jax.lax.dot_general
    hooks: ActivationHooks = UNTOUCHED
    separator: int | None = None

    def setup(self) -> None:
        """Names the parts; the names are the parameter tree."""
        cfg = self.cfg
        implementation = resolve_attention(self.attention, self.dtype, cfg.head_dim)
        self.embed = self.transform(Embed, "embed")(cfg.vocab_size, cfg.hidden_size)
        scanned = nn.scan(
            _rematerialize(self.transform(Block, "layers"), self.remat),
            variable_axes=LAYERED_COLLECTIONS,
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
        )
        self.layers = scanned(cfg, self.dtype, implementation, self.dot_general, self.hooks)
        self.norm = self.transform(RMSNorm, "norm")(cfg.rms_norm_eps, self.dtype)
        if not cfg.tie_embeddings:
            self.lm_head = self.transform(Head, "lm_head")(cfg.vocab_size, cfg.hidden_size)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits f32[b t V] of the token after each of i32[b t]."""
        hidden, kernel = self.hidden_and_head(tokens)
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Returns what the head multiplies: the normed last states [b t d] in `dtype`."""
        return self._decode(self.embed(), tokens)

    def head(self) -> jax.Array:
        """Returns the head's kernel [d V] in `dtype`: its own, or the transposed embedding of a tied model."""
        return self._kernel(self.embed() if self.cfg.tie_embeddings else None)

    def hidden_and_head(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns ([b t d], kernel [d V]), transforming a tied embedding once for both of its uses.

        For losses that never hold the logits of a whole batch.
        """
        table = self.embed()
        return self._decode(table, tokens), self._kernel(table)

    def _decode(self, table: jax.Array, tokens: jax.Array) -> jax.Array:
        # Rows are cast after the lookup: the gradient of a frequent token then adds up in float32.
        x = by_rows(gathered(table, cut=0)[tokens].astype(self.dtype))
        cos, sin = rotary_tables(self.cfg, tokens.shape[1])
        mask = None
        if self.separator is not None:
            positions, mask = document_positions(tokens, self.separator)
            cos, sin, mask = by_rows(cos[positions]), by_rows(sin[positions]), by_rows(mask)
        x, _ = self.layers(x, cos, sin, mask)
        return by_rows(self.norm(x))

    def _kernel(self, table: jax.Array | None) -> jax.Array:
        kernel = self.lm_head() if table is None or not self.cfg.tie_embeddings else table.T
        return gathered(kernel.astype(self.dtype), cut=1)


def _on_heads(hook: OnHeads | None, x: jax.Array) -> jax.Array:
    return x if hook is None else hook(x)


def _into_residual(
    cfg: LlamaConfig, dtype: DTypeLike, dot_general: DotGeneral, hooks: ActivationHooks, name: str
) -> Dense:
    """A dense layer that adds to the residual stream: starts smaller, as the 2 L of them sum (GPT-2)."""
    stddev = INIT_STDDEV / (2 * cfg.num_layers) ** 0.5
    return Dense(cfg.hidden_size, dtype, False, dot_general, stddev, cfg.linear_norm, hooks, name=name)


def matmuls_and_fused_attention(primitive: Any, *args: Any, **params: Any) -> Any:
    """Says what the remat policy "dots" keeps.

    cuDNN's attention is one primitive with two results to keep; redoing it took 3 % of a step of SmolLM2-135M.
    """
    if primitive.name.startswith("dot_product_attention_fwd"):
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


def _rematerialize(block_cls: Any, policy: str) -> Any:
    """Returns the block class under the remat policy; raises ModelError for an unknown one."""
    if policy == "none":
        return block_cls
    if policy == "full":
        saved = jax.checkpoint_policies.nothing_saveable
    elif policy == "dots":
        saved = matmuls_and_fused_attention
    else:
        raise ModelError(
            f"remat {policy!r} is unknown: {nearest(policy, get_args(RematPolicy))}",
            "set remat to one of " + ", ".join(get_args(RematPolicy)),
        )
    # A scan's body is compiled apart, so common subexpressions cannot undo the recomputation.
    return nn.remat(block_cls, prevent_cse=False, policy=saved)
