"""From the section `quant` of a config to the ordered rules that give each parameter its quantizer."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lowbit.config import ConfigDict
from lowbit.errors import ConfigError, QuantizerError, nearest
from lowbit.numerics.quantizers import QUANTIZERS, Quantizer, absmean_ternary, llmqat, paretoq, rtn, stored_as
from lowbit.tree.rules import Rule

LINEAR_KERNELS = r"layers/(attn|mlp)/.*_proj/kernel"
"""What a method quantizes; embedding, head, norms and biases stay float."""

FLOAT = "float"


def quantization_rules(quant: ConfigDict) -> list[Rule]:
    """Returns the rules of `config.quant`: overrides first, then the linear kernels, then everything else.

    An override `(pattern, {"bits": 4})` takes what it does not name from `quant` itself.

    Raises:
      ConfigError: an override of another form, or with an unknown key.
      QuantizerError: an unknown method, width, granularity, scale start or dtype.
    """
    settings = quant.to_dict()
    overrides = settings.pop("overrides")
    rules = []
    for entry in overrides:
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)):
            raise ConfigError(f"quant.overrides holds {entry!r}", 'give pairs such as ("layers/mlp/.*", {"bits": 4})')
        pattern, changes = entry
        for key in changes:
            if key not in settings:
                raise ConfigError(f"quant.overrides sets an unknown key {key!r}", nearest(key, settings))
        rules.append(Rule(pattern, make_quantizer({**settings, **changes})))
    if settings["method"] != FLOAT:
        rules.append(Rule(LINEAR_KERNELS, make_quantizer(settings)))
    return [*rules, Rule(".*", stored_as(_dtype(settings["float_dtype"])))]


def make_quantizer(settings: Mapping[str, Any]) -> Quantizer:
    """Returns the quantizer that `method`, `bits` or `layer_bits`, `granularity`, `scale_init` and the dtypes describe.

    Raises:
      ConfigError: a width a layer for a method that has but one.
      QuantizerError: see `quantization_rules`.
    """
    method, bits = settings["method"], settings["bits"]
    layer_bits = tuple(settings["layer_bits"])
    if layer_bits and method != "paretoq":
        raise ConfigError(
            f"quant.layer_bits is set, and quant.method {method!r} has one width for all layers",
            "set quant.method=paretoq, or leave quant.layer_bits empty",
        )
    shared = {"granularity": settings["granularity"], "scale_dtype": _dtype(settings["scale_dtype"])}
    match method:
        case "paretoq":
            return paretoq(layer_bits or bits, scale_init=settings["scale_init"], **shared)
        case "rtn":
            return rtn(bits, scale_init=settings["scale_init"], **shared)
        case "llmqat":
            return llmqat(bits, **shared)
        case "absmean_ternary":
            return absmean_ternary(**shared)
        case "float":
            return stored_as(_dtype(settings["float_dtype"]))
    raise QuantizerError(f"unknown quantization method {method!r}", nearest(method, [*QUANTIZERS, FLOAT]))


def _dtype(name: str) -> jnp.dtype:
    names = ("float16", "bfloat16", "float32")
    if name not in names:
        raise QuantizerError(f"unknown stored dtype {name!r}", nearest(name, names))
    return jnp.dtype(name)
