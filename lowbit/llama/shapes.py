"""The parameter tree of the decoder: the path and the shape of each parameter."""

from lowbit.llama.config import LlamaConfig

LAYER_PREFIX = "layers/"
"""Parameters below this path are stacked over layers, [L ...]; files hold them layer by layer."""


def param_shapes(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns every parameter's path ("layers/attn/q_proj/kernel") and shape; kernels are [L k n]."""
    layers, d, ff = cfg.num_layers, cfg.hidden_size, cfg.intermediate_size
    q, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed/embedding": (cfg.vocab_size, d),
        "layers/attn_norm/scale": (layers, d),
        "layers/attn/q_proj/kernel": (layers, d, q),
        "layers/attn/k_proj/kernel": (layers, d, kv),
        "layers/attn/v_proj/kernel": (layers, d, kv),
        "layers/attn/o_proj/kernel": (layers, q, d),
        "layers/mlp_norm/scale": (layers, d),
        "layers/mlp/gate_proj/kernel": (layers, d, ff),
        "layers/mlp/up_proj/kernel": (layers, d, ff),
        "layers/mlp/down_proj/kernel": (layers, ff, d),
        "norm/scale": (d,),
    }
    if cfg.qkv_bias:
        shapes |= {f"layers/attn/{name}_proj/bias": (layers, n) for name, n in (("q", q), ("k", kv), ("v", kv))}
    if not cfg.tie_embeddings:
        shapes["lm_head/kernel"] = (d, cfg.vocab_size)
    return shapes
