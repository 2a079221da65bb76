"""From the section `quant` of a config to the ordered rules that give each parameter its quantizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lowbit.config import ConfigDict, base
from lowbit.errors import ConfigError, QuantizerError, nearest
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.numerics.quantizers import (
    QUANTIZERS,
    Quantizer,
    absmean_ternary,
    doubled,
    fixed,
    llmqat,
    nf4,
    onebit,
    paretoq,
    rtn,
    stored_as,
    transposed,
)
from lowbit.train.overrides import changes
from lowbit.tree.apply import resolve
from lowbit.tree.paths import Tree
from lowbit.tree.rules import Rule, lookup

LINEAR_KERNELS = r"layers/(attn|mlp)/.*_proj/kernel"
"""What a method quantizes; embedding, head, norms and biases stay float."""

EMBEDDING = "embed/embedding"
"""Stored `[V d]`, the transpose of a kernel: where an override quantizes it, each vocabulary row has its scale."""

FLOAT = "float"

_FAMILY = LlamaConfig(2, 2, 2, 1, num_heads=1, num_kv_heads=1, head_dim=2, tie_embeddings=False, qkv_bias=True)
FAMILY_PATHS = tuple(param_shapes(_FAMILY))
"""Of all parameters that a model of the family may have."""

_OTHER_PATHS = tuple(path for path in FAMILY_PATHS if path != EMBEDDING)
_KERNEL_PATHS = tuple(path for path in _OTHER_PATHS if lookup([Rule(LINEAR_KERNELS, True), Rule(".*", False)], path))

OF_SOME_METHODS: dict[str, tuple[tuple[str, ...], Any]] = {
    "layer_bits": (("paretoq",), ()),
    "symmetric": (("rtn",), True),
    "variant": (("llmqat",), "fixed"),
    "estimator": (("paretoq",), "clipped"),
    "codes": (("paretoq", "rtn"), "moving"),
    "latent": (("onebit",), 0.0),
    "double_quant": (("paretoq", "rtn", "llmqat", "absmean_ternary", "nf4"), False),
}
"""Choices that only some methods have, and the value that stands where there is no choice."""

CODES = ("moving", "fixed")
"""Whether codes follow masters that learn, or stay those of the start."""


def quantization_rules(quant: ConfigDict) -> list[Rule]:
    """Returns the rules of `config.quant`: overrides first, then the linear kernels, then everything else.

    An override `(pattern, {"bits": 4})` takes what it does not name from `quant` itself; one that names another method
    leaves choices that it does not have behind. The embedding is quantized along its rows (`transposed`).

    Raises:
      ConfigError: a key is missing (written by another version); an override of another form, or with an unknown key.
      QuantizerError: an unknown method, width, granularity, scale start, estimator or dtype.
      RuleError: a pattern that is no regular expression.
    """
    settings = quant.to_dict()
    missing = sorted(base().quant.keys() - settings.keys())
    if missing:
        raise ConfigError(f"the section quant lacks {', '.join(missing)}", "use the version of lowbit that wrote it")
    overrides = settings.pop("overrides")
    rules: list[Rule] = []
    for pattern, changed in changes(overrides, "quant", settings, '("layers/mlp/.*", {"bits": 4})'):
        inherited = settings
        if (method := changed.get("method", settings["method"])) != settings["method"]:
            left = {key: neutral for key, (owners, neutral) in OF_SOME_METHODS.items() if method not in owners}
            inherited = settings | left
        rules += _override(pattern, make_quantizer({**inherited, **changed}), rules)
    # Where overrides take every kernel, as an allocation of widths does, nothing is left for this rule to reach.
    fallen_through: Rule[Quantizer | None] = Rule(".*", None)
    if settings["method"] != FLOAT and not all(lookup([*rules, fallen_through], path) for path in _KERNEL_PATHS):
        rules.append(Rule(LINEAR_KERNELS, make_quantizer(settings)))
    return [*rules, Rule(".*", stored_as(_dtype(settings["float_dtype"])))]


def fixed_codes(rules: Sequence[Rule[Quantizer | None]], params: Tree) -> frozenset[str]:
    """Returns the paths of the parameters (or shapes) whose codes stay those of the start; raises as `resolve`."""
    return frozenset(path for path, q in resolve(rules, params).items() if q is not None and q.fixed)


def make_quantizer(settings: Mapping[str, Any]) -> Quantizer:
    """Returns the quantizer that a section `quant` describes.

    Raises:
      ConfigError: a width a layer, a symmetry, a variant, an estimator, fixed codes or scales that are quantized once
        more for a method that has no such choice, or codes that are neither moving nor fixed.
      QuantizerError: see `quantization_rules`.
    """
    method = settings["method"]
    for key, (owners, neutral) in OF_SOME_METHODS.items():
        given = tuple(settings[key]) if key == "layer_bits" else settings[key]
        if method in (*QUANTIZERS, FLOAT) and method not in owners and given != neutral:
            raise ConfigError(
                f"quant.{key}={given!r} is set, and quant.method {method!r} has no such choice",
                f"set quant.method={' or '.join(owners)}, or leave quant.{key} at {neutral!r}",
            )
    if settings["codes"] not in CODES:
        raise ConfigError(f"unknown quant.codes {settings['codes']!r}", nearest(str(settings["codes"]), CODES))
    quantizer = _of_method(settings)
    if settings["double_quant"]:
        quantizer = doubled(quantizer)
    return fixed(quantizer) if settings["codes"] == "fixed" else quantizer


def _of_method(settings: Mapping[str, Any]) -> Quantizer:
    """The quantizer of a method, whose codes follow its masters."""
    method, bits, layer_bits = settings["method"], settings["bits"], tuple(settings["layer_bits"])
    shared = {"granularity": settings["granularity"], "scale_dtype": _dtype(settings["scale_dtype"])}
    match method:
        case "paretoq":
            return paretoq(
                layer_bits or bits, scale_init=settings["scale_init"], estimator=settings["estimator"], **shared
            )
        case "rtn":
            return rtn(bits, symmetric=settings["symmetric"], scale_init=settings["scale_init"], **shared)
        case "llmqat":
            return llmqat(bits, variant=settings["variant"], **shared)
        case "absmean_ternary":
            return absmean_ternary(**shared)
        case "onebit":
            return onebit(scale_init=settings["scale_init"], latent=settings["latent"], **shared)
        case "nf4":
            return nf4(**shared)
        case "float":
            return stored_as(_dtype(settings["float_dtype"]))
    raise QuantizerError(f"unknown quantization method {method!r}", nearest(method, [*QUANTIZERS, FLOAT]))


def _override(pattern: str, quantizer: Quantizer, before: Sequence[Rule]) -> list[Rule]:
    """The rules of one override: two where its pattern takes in the embedding and may take in kernels."""
    rule: Rule[Quantizer | None] = Rule(pattern, quantizer)
    fallen_through: Rule[Quantizer | None] = Rule(".*", None)
    of_embedding = lookup([rule, fallen_through], EMBEDDING) is quantizer
    taken = lookup([*before, fallen_through], EMBEDDING) is not None
    if quantizer.granularity is None or not of_embedding or taken:
        return [rule]
    rows = transposed(quantizer)
    if not any(lookup([rule, fallen_through], path) for path in _OTHER_PATHS):
        return [Rule(pattern, rows)]
    return [Rule(EMBEDDING, rows), rule]


def _dtype(name: str) -> jnp.dtype:
    names = ("float16", "bfloat16", "float32")
    if name not in names:
        raise QuantizerError(f"unknown stored dtype {name!r}", nearest(name, names))
    return jnp.dtype(name)
