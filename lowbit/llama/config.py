"""Sizes and constants of a decoder, from and to a Hugging Face config.json."""

import math
from dataclasses import dataclass
from typing import Any

from lowbit.errors import ModelError
from lowbit.llama.fields import Fields
from lowbit.llama.scaling import RopeScaling

SUPPORTED_FAMILIES = ("llama", "mistral", "mobilellm", "qwen2")

# What transformers assumes where a config.json leaves a key out.
_ROPE_THETA = 10_000.0
_RMS_NORM_EPS = 1e-6
_MAX_POSITIONS = {"llama": 2048, "mobilellm": 2048, "mistral": 131_072, "qwen2": 32_768}
_SPECIAL_TOKENS: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "llama": (1, (2,)),
    "mobilellm": (1, (2,)),
    "mistral": (1, (2,)),
    "qwen2": (None, ()),
}
_LINEAR_NORM_KEY = "lowbit_linear_norm"
LINEAR_NORM_EPS = 1e-5
"""Added to the variance under the root, as in torch's LayerNorm."""
_WHOLE_ATTENTION = "full_attention"
# Far above any decoder; a damaged file that claims more would have its readers make lists of names without end.
_MAX_LAYERS = 10_000


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
      linear_norm: whether a LayerNorm without weights follows each product with a kernel of a block (OneBit,
        arXiv 2402.11295). Part of no family: only this package's config.json says it.
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
    linear_norm: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
        for name in (*sizes, "num_kv_heads", "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}", f"set {name} to at least 1")
        if self.num_layers > _MAX_LAYERS:
            raise ModelError(
                f"num_layers is {self.num_layers}, more than {_MAX_LAYERS}", "download the model's config.json again"
            )
        if not 1 < self.rope_theta < math.inf:
            raise ModelError(
                f"rope_theta is {self.rope_theta}", "set rope_theta above 1; most models have 10000 or more"
            )
        if not 0 < self.rms_norm_eps < math.inf:
            raise ModelError(f"rms_norm_eps is {self.rms_norm_eps}", "set rms_norm_eps above 0, such as 1e-5")
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
        if self.head_dim == 2 and self.rope_scaling is not None and self.rope_scaling.kind == "dynamic":
            raise ModelError(
                "head_dim is 2, whose single frequency does not depend on the base that dynamic rope scaling changes",
                "make head_dim at least 4, or leave rope_scaling out",
            )

    @classmethod
    def from_hf(cls, config: object, where: str = "config.json") -> "LlamaConfig":
        """Reads a Hugging Face config.json, with rope in the old layout or that of transformers 5.

        Args:
          config: what the file holds: a JSON object. A key that is null counts as absent.
          where: what messages call it.

        Raises:
          ModelError: no JSON object, a family not supported, a missing key, a value of another kind than the key has,
            or a feature the decoder does not have.
        """
        fields = Fields(config, where)
        family = str(fields.entries.get("model_type"))
        if family not in SUPPORTED_FAMILIES:
            raise ModelError(
                f"model family {family!r} is not supported",
                "take a model of one of the families " + ", ".join(SUPPORTED_FAMILIES),
            )
        needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        absent = [key for key in needed if not fields.has(key)]
        if absent:
            raise ModelError(f"{where} lacks {', '.join(absent)}", "download the model's config.json again")
        _refuse_other_architectures(family, fields)

        vocab_size, hidden_size, intermediate_size, num_layers, num_heads = (_size(fields, key) for key in needed)
        max_positions = fields.integer("max_position_embeddings") or _MAX_POSITIONS[family]
        rope = {**fields.section("rope_parameters").entries, **fields.section("rope_scaling").entries}
        if "original_max_position_embeddings" in fields.entries:
            rope["original_max_position_embeddings"] = fields.entries["original_max_position_embeddings"]
        rope_theta = Fields(rope, "rope_parameters").number("rope_theta") or fields.number("rope_theta")
        # Here null is not absence: it says that there is no such token.
        bos, eos = _SPECIAL_TOKENS[family]
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads") or num_heads,
            head_dim=fields.integer("head_dim") or hidden_size // num_heads,
            rope_theta=rope_theta or _ROPE_THETA,
            rope_scaling=RopeScaling.from_hf(rope, max_positions),
            rms_norm_eps=fields.number("rms_norm_eps") or _RMS_NORM_EPS,
            # MobileLLM's code says share_embedding and leaves tie_word_embeddings false.
            tie_embeddings=fields.flag("tie_word_embeddings") or fields.flag("share_embedding"),
            qkv_bias=family == "qwen2",
            max_positions=max_positions,
            bos_token_id=fields.integer("bos_token_id", least=0) if "bos_token_id" in fields.entries else bos,
            eos_token_ids=fields.integers("eos_token_id") if "eos_token_id" in fields.entries else eos,
            linear_norm=fields.flag(_LINEAR_NORM_KEY),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json that transformers loads: family "qwen2" with a qkv bias, otherwise "llama".

        Rope is written in both layouts, so that readers older and newer than transformers 5 agree.
        """
        family = "qwen2" if self.qkv_bias else "llama"
        scaling = None if self.rope_scaling is None else self.rope_scaling.to_hf()
        eos = self.eos_token_ids
        own = {_LINEAR_NORM_KEY: True} if self.linear_norm else {}
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
            **own,
        }


def _size(fields: Fields, key: str) -> int:
    """Returns a size that is known to be there."""
    size = fields.integer(key)
    assert size is not None
    return size


def _refuse_other_architectures(family: str, fields: Fields) -> None:
    """Raises ModelError where config.json asks for something that the decoder does not compute."""
    config = fields.entries
    if family == "mistral":  # has one of 4,096 tokens unless config.json says null
        sliding = config.get("sliding_window", 4096) is not None
    else:
        sliding = fields.flag("use_sliding_window")
    faults = {
        "a sliding attention window": sliding,
        "layers of several attention types": set(fields.texts("layer_types")) - {_WHOLE_ATTENTION},
        f"the activation {config.get('hidden_act')!r}": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "a bias on the attention output (attention_bias)": family != "qwen2" and fields.flag("attention_bias"),
        "a bias in the MLP (mlp_bias)": fields.flag("mlp_bias"),
        "layers that share weights (layer_sharing)": fields.flag("layer_sharing"),
        "rope that differs between layers": _WHOLE_ATTENTION in fields.section("rope_parameters").entries,
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ModelError(
            f"this {family} model has {' and '.join(found)}, which the decoder does not support",
            "take a model without it",
        )
