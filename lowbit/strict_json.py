"""JSON as its standard has it: without infinities and NaN, which Python would write."""

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Returns a tree of JSON values with None for each number that JSON cannot write: inf, -inf and NaN."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
