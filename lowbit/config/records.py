"""Configs as JSON, and what two of them differ in."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lowbit.config.keys import flat, leaves
from lowbit.config.schema import base
from lowbit.errors import ConfigError
from lowbit.version import __version__

ADDED: dict[str, Any] = {
    "activations.bits": 16,
    "activations.calibration": 32,
    "activations.granularity": "token",
    "activations.kv_bits": 16,
    "activations.kv_per_head": True,
    "activations.kv_rotated": True,
    "activations.kv_symmetric": True,
    "activations.overrides": (),
    "activations.range": "dynamic",
    "activations.symmetric": True,
    "activations.variant": "fixed",
    "adapters.alpha": 16.0,
    "adapters.overrides": (),
    "adapters.rank": 0,
    "adapters.rounds": 5,
    "adapters.start": "zero",
    "coreset.every_steps": 0,
    "coreset.score": "mixed",
    "coreset.share": 1.0,
    "data.attend_across_documents": True,
    "data.separator": "",
    "distill.attention_layer": -1,
    "distill.attention_weight": 0.0,
    "distill.cache": "",
    "distill.divergence": "forward",
    "distill.dtype": "bfloat16",
    "distill.hidden_weight": 0.0,
    "distill.teacher": "",
    "distill.temperature": 1.0,
    "distill.weight": 0.0,
    "log.recorder_every_steps": 0,
    "model.architecture.bos_token_id": 0,
    "model.architecture.eos_token_ids": (0,),
    "model.linear_norm": False,
    "model.rotate": False,
    "model.source_scales": False,
    "optimizer.channel_choice": "matrix",
    "optimizer.channel_every_steps": 100,
    "optimizer.channel_share": 1.0,
    "optimizer.float_learning_rate": 1.0,
    "optimizer.momentum": 0.95,
    "optimizer.name": "adamw",
    "optimizer.scale_schedule": "same",
    "optimizer.scale_until": 1.0,
    "quant.codes": "moving",
    "quant.double_quant": False,
    "quant.estimator": "clipped",
    "quant.latent": 0.0,
    "quant.layer_bits": (),
    "quant.symmetric": True,
    "quant.variant": "fixed",
}
"""Keys that were added after runs had been recorded without them, and the value by which each means what was done
before it was there. Whoever adds a key to the schema adds it here."""

VERSION = "lowbit_version"


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON with sorted keys, and which version wrote it; `from_json` is its inverse.

    JSON has no infinity: it is written as the string "inf".
    """
    record = {VERSION: __version__, **_spelt(config.to_dict())}
    return json.dumps(record, indent=2, sort_keys=True, allow_nan=False)


def from_json(text: str, place: str) -> ConfigDict:
    """Returns the config that `to_json` wrote; keys that were `ADDED` since mean what was done before.

    Raises:
      ConfigError: no JSON, a key that this version does not know, or one missing that every version had; `place` says
        where the text stood.
    """
    try:
        values = dict(flat(json.loads(text)))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{place} holds no config", "use the version of lowbit that wrote it") from error
    written = values.pop(VERSION, None)
    author = "a version that did not say which" if written is None else f"lowbit {written}"
    mend = f"use the version of lowbit that wrote it; it was written by {author}, and this is {__version__}"
    config = base()
    known = dict(leaves(config)).keys()
    unknown, missing = sorted(values.keys() - known), sorted(known - values.keys() - ADDED.keys())
    if unknown:
        raise ConfigError(f"{place} has keys that this version does not know: {', '.join(unknown)}", mend)
    if missing:
        raise ConfigError(f"{place} lacks the keys {', '.join(missing)}", mend)
    values = ADDED | values
    floats = {key for key, value in leaves(config) if isinstance(value, float)}
    try:
        for key, value in values.items():
            values[key] = float(value) if key in floats and isinstance(value, str) else _tuples(value)
        config.update_from_flattened_dict(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place} holds a value of another type: {error}", mend) from error
    return config


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Returns the keys, such as "quant.bits", at which two configs of the same schema differ."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return sorted(key for key in left.keys() | right.keys() if _tuples(left[key]) != _tuples(right[key]))


def _spelt(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _spelt(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(inner) for inner in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _tuples(value: Any) -> Any:
    """JSON knows lists only; configs hold tuples, also inside of the mappings of overrides."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
