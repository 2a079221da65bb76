"""What the Llama family is, without any framework: sizes, rotary frequencies, parameter names and shapes.

The Flax model, the loaders and the numpy runtime all read this one description. Covered: Llama 1 to 3,
TinyLlama, SmolLM and SmolLM2, MobileLLM, Qwen2 (a bias on q, k, v), and Mistral without a sliding window.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.errors import ModelError, nearest

SUPPORTED_FAMILIES = ("llama", "mistral", "mobilellm", "qwen2")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")

# What each kind of rope scaling cannot do without.
_SCALING_NEEDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "llama3": ("original_max_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_positions",),
}

# What transformers assumes where a config.json leaves a key out.
_ROPE_THETA = 10_000.0
_RMS_NORM_EPS = 1e-6
_MAX_POSITIONS = {"llama": 2048, "mobilellm": 2048, "mistral": 131_072, "qwen2": 32_768}
_SPECIAL_TOKENS = {"llama": (1, 2), "mobilellm": (1, 2), "mistral": (1, 2), "qwen2": (None, None)}
_WHOLE_ATTENTION = "full_attention"


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched past the context of pretraining; names as in `rope_scaling`.

    Attributes:
      kind: "linear" (positions divided by `factor`), "dynamic" (NTK: the base grows with the sequence),
        "llama3" (low frequencies divided, high ones kept, a ramp between) or "yarn" (arXiv 2309.00071).
      factor: how many times longer the context gets, at least 1.
      original_max_positions: context of pretraining in tokens; "llama3" and "yarn" need it.
      low_freq_factor: "llama3": waves longer than original_max_positions / this are divided by `factor`.
      high_freq_factor: "llama3": waves shorter than original_max_positions / this are kept.
      beta_fast: "yarn": frequencies that turn more often than this within the context are kept.
      beta_slow: "yarn": frequencies that turn less often than this are divided by `factor`.
      attention_factor: "yarn": what multiplies cos and sin; None computes it from `factor`.
      mscale: "yarn": with `mscale_all_dim`, DeepSeek's form of the attention factor.
      mscale_all_dim: see `mscale`.
      truncate: "yarn": whether the ends of the ramp are rounded to whole dimensions.
    """

    kind: str
    factor: float
    original_max_positions: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _SCALING_NEEDS:
            raise ModelError(
                f"rope scaling {self.kind!r} is not supported: {nearest(self.kind, ROPE_KINDS)}",
                "take a model whose rope_scaling is one of " + ", ".join(ROPE_KINDS),
            )
        absent = [name for name in _SCALING_NEEDS[self.kind] if getattr(self, name) is None]
        if absent or not self.factor >= 1:
            lack = ", ".join(absent) or "a factor of at least 1"
            raise ModelError(
                f"rope scaling {self.kind!r} with factor {self.factor} lacks {lack}",
                "complete `rope_scaling` (`rope_parameters`) in config.json",
            )

    @classmethod
    def from_hf(cls, rope: Mapping[str, Any], max_positions: int) -> "RopeScaling | None":
        """Returns the scaling that a `rope_scaling` or `rope_parameters` entry describes; None for none.

        Raises:
          ModelError: unknown kind, a missing key, or rotation of only a part of each head.
        """
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ModelError(
                f"partial_rotary_factor {rope['partial_rotary_factor']} rotates only a part of each head",
                "take a model that rotates whole heads",
            )
        if kind == "default":
            return None
        original = rope.get("original_max_position_embeddings") or max_positions
        factor = rope.get("factor")
        if factor is None and kind == "yarn":
            factor = max_positions / original
        if factor is None and kind in ROPE_KINDS:
            raise ModelError(f"rope scaling {kind!r} has no factor", "set rope_scaling.factor in config.json")
        return cls(
            kind=kind,
            factor=float(factor or 1.0),
            original_max_positions=int(original) if _SCALING_NEEDS.get(kind) else None,
            low_freq_factor=_float_or_none(rope.get("low_freq_factor")),
            high_freq_factor=_float_or_none(rope.get("high_freq_factor")),
            beta_fast=float(rope.get("beta_fast") or 32.0),
            beta_slow=float(rope.get("beta_slow") or 1.0),
            attention_factor=_float_or_none(rope.get("attention_factor")),
            mscale=_float_or_none(rope.get("mscale")),
            mscale_all_dim=_float_or_none(rope.get("mscale_all_dim")),
            truncate=bool(rope.get("truncate", True)),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the `rope_scaling` entry of config.json: only the keys that this kind reads."""
        entry: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind in ("llama3", "yarn"):
            entry["original_max_position_embeddings"] = self.original_max_positions
        if self.kind == "llama3":
            entry |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.kind == "yarn":
            entry |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow, "truncate": self.truncate}
            optional = ("attention_factor", "mscale", "mscale_all_dim")
            entry |= {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        return entry


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of one decoder; hashable, so that it may be a static argument of a jitted function.

    Attributes:
      vocab_size: rows of the embedding, V.
      hidden_size: width of the residual stream, d.
      intermediate_size: width of the gated MLP.
      num_layers: decoder blocks, L.
      num_heads: query heads.
      num_kv_heads: key and value heads; a divisor of `num_heads`.
      head_dim: width of one head, even.
      rope_theta: base of the rotary frequencies.
      rope_scaling: stretch of the rotary frequencies, or None.
      rms_norm_eps: added to the mean square under the root.
      tie_embeddings: whether the head is the transposed embedding.
      qkv_bias: whether q, k and v have a bias (Qwen2).
      max_positions: longest sequence the model was trained for, in tokens.
      bos_token_id: token that starts a text, or None.
      eos_token_ids: tokens that end one; may be empty.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = _ROPE_THETA
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = _RMS_NORM_EPS
    tie_embeddings: bool = True
    qkv_bias: bool = False
    max_positions: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
        for name in (*sizes, "num_kv_heads", "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}", f"set {name} to at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} query heads do not divide among {self.num_kv_heads} key-value heads",
                "make num_kv_heads a divisor of num_heads",
            )
        if self.head_dim % 2:
            raise ModelError(
                f"head_dim is {self.head_dim}, but rotary embedding turns pairs of dimensions",
                "make head_dim even",
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Reads a Hugging Face config.json, with rope in the old layout or that of transformers 5.

        Raises:
          ModelError: a family not supported, a missing key, or a feature the decoder does not have.
        """
        family = str(config.get("model_type"))
        if family not in SUPPORTED_FAMILIES:
            raise ModelError(
                f"model family {family!r} is not supported",
                "take a model of one of the families " + ", ".join(SUPPORTED_FAMILIES),
            )
        needed = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
        absent = [key for key in needed if config.get(key) is None]
        if absent:
            raise ModelError(f"config.json lacks {', '.join(absent)}", "download the model's config.json again")
        _refuse_other_architectures(family, config)

        num_heads = int(config["num_attention_heads"])
        max_positions = int(config.get("max_position_embeddings") or _MAX_POSITIONS[family])
        rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
        if "original_max_position_embeddings" in config:
            rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        bos, eos = _SPECIAL_TOKENS[family]
        bos, eos = config.get("bos_token_id", bos), config.get("eos_token_id", eos)
        return cls(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // num_heads),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or _ROPE_THETA),
            rope_scaling=RopeScaling.from_hf(rope, max_positions),
            rms_norm_eps=float(config.get("rms_norm_eps") or _RMS_NORM_EPS),
            # MobileLLM's code says share_embedding and leaves tie_word_embeddings false.
            tie_embeddings=bool(config.get("tie_word_embeddings") or config.get("share_embedding")),
            qkv_bias=family == "qwen2",
            max_positions=max_positions,
            bos_token_id=bos,
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json that transformers loads: family "qwen2" with a qkv bias, otherwise "llama".

        Rope is written in both layouts, so that readers older and newer than transformers 5 agree.
        """
        family = "qwen2" if self.qkv_bias else "llama"
        scaling = None if self.rope_scaling is None else self.rope_scaling.to_hf()
        eos = self.eos_token_ids
        return {
            "architectures": ["Qwen2ForCausalLM" if self.qkv_bias else "LlamaForCausalLM"],
            "model_type": family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": {"rope_theta": self.rope_theta, **(scaling or {"rope_type": "default"})},
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_positions,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
        }


def rope_frequencies(cfg: LlamaConfig, sequence_length: int | None = None) -> tuple[np.ndarray, float]:
    """Returns the frequencies in radians per position, f32[head_dim/2], and what multiplies cos and sin.

    Dimension i turns with i + head_dim/2 (the half-split form). Computed in float64 and rounded once.

    Args:
      cfg: the model.
      sequence_length: tokens in the sequence; only "dynamic" scaling reads it, and only past `max_positions`.
    """
    base, dim, scaling = cfg.rope_theta, cfg.head_dim, cfg.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        stretch = max(sequence_length or 0, cfg.max_positions) / cfg.max_positions
        base *= (scaling.factor * stretch - (scaling.factor - 1)) ** (dim / (dim - 2))
    plain = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return plain.astype(np.float32), 1.0
    if scaling.kind == "linear":
        return (plain / scaling.factor).astype(np.float32), 1.0

    original = scaling.original_max_positions
    assert original is not None  # RopeScaling refuses to exist without it
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None
        assert high is not None
        turns = original * plain / (2 * math.pi)  # within the context of pretraining
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32), 1.0

    kept = 1.0 - _yarn_ramp(scaling, original, base, dim)
    return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32), _yarn_attention_factor(scaling)


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


def _refuse_other_architectures(family: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError where config.json asks for something that the decoder does not compute."""
    if family == "mistral":  # has one of 4,096 tokens unless config.json says null
        sliding = config.get("sliding_window", 4096) is not None
    else:
        sliding = bool(config.get("use_sliding_window"))
    faults = {
        "a sliding attention window": sliding,
        "layers of several attention types": set(config.get("layer_types") or ()) - {_WHOLE_ATTENTION},
        f"the activation {config.get('hidden_act')!r}": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "a bias on the attention output (attention_bias)": family != "qwen2" and config.get("attention_bias"),
        "a bias in the MLP (mlp_bias)": config.get("mlp_bias"),
        "layers that share weights (layer_sharing)": config.get("layer_sharing"),
        "rope that differs between layers": _WHOLE_ATTENTION in (config.get("rope_parameters") or {}),
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ModelError(
            f"this {family} model has {' and '.join(found)}, which the decoder does not support",
            "take a model without it",
        )


def _yarn_ramp(scaling: RopeScaling, original: int, base: float, dim: int) -> np.ndarray:
    """Share of position interpolation per frequency, f64[dim/2]: 0 for fast turns, 1 for slow ones."""

    def dimension_with(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_with(scaling.beta_fast), dimension_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # 0.001 wide where both ends fall together, as in the reference code of the paper.
    return np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """Temperature of YaRN (arXiv 2309.00071, eq. 22): 0.1 ln(factor) + 1 unless the config states another."""

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
