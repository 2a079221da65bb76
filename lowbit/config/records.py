"""Configs as JSON, and what two of them differ in."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lowbit.config.keys import flat, leaves
from lowbit.config.schema import base
from lowbit.errors import ConfigError


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON with sorted keys; `from_json` is its inverse.

    JSON has no infinity: it is written as the string "inf".
    """
    return json.dumps(_spelt(config.to_dict()), indent=2, sort_keys=True, allow_nan=False)


def from_json(text: str, place: str) -> ConfigDict:
    """Returns the config that `to_json` wrote.

    Raises:
      ConfigError: no JSON, or keys other than those of `base()`; `place` says where the text stood.
    """
    mend = "use the version of lowbit that wrote it"
    try:
        values = dict(flat(json.loads(text)))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{place} holds no config", mend) from error
    config = base()
    unlike = sorted(values.keys() ^ dict(leaves(config)).keys())
    if unlike:
        raise ConfigError(f"{place} and this version's configs differ in the keys {', '.join(unlike)}", mend)
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
    """JSON knows lists only; configs hold tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
