"""A config's keys as dotted names."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict


def leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of each setting: ("quant.bits", 2.0)."""
    return flat(config.to_dict())


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (key, leaf) of a nested mapping, keys joined by dots."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def node_at(config: ConfigDict, key: str) -> Any:
    """Returns the setting or section at a key, None where there is none."""
    place: Any = config
    for name in key.split("."):
        if not isinstance(place, ConfigDict) or name not in place:
            return None
        place = place[name]
    return place
