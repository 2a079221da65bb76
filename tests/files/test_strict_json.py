"""Numbers that JSON has not."""

import json
import math

from lowbit.strict_json import finite


def test_what_json_cannot_write_becomes_null_at_any_depth():
    value = {"a": {"b": 2.0}, "c": [math.inf, (1, -math.inf)], "d": math.nan, "e": "inf", "f": None, "g": True}
    wanted = {"a": {"b": 2.0}, "c": [None, [1, None]], "d": None, "e": "inf", "f": None, "g": True}
    assert finite(value) == wanted
    json.dumps(finite(value), allow_nan=False)
