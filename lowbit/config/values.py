"""Values of a config as text: how the command line writes them."""

import ast
import math
from typing import Any

from lowbit.errors import ConfigError


def parse(text: str, kind: type, what: str, element: type = str) -> Any:
    """Returns `text` as a bool, int, float, str, tuple (commas between its parts) or, for object, an int or str.

    An int may be written as 1e7 or 10_000_000. A tuple's parts are read as `element` each; in brackets, it is Python's.

    Raises:
      ConfigError: the text is no such value; `what` says where it stood.
    """
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return _integer(text)
        if kind is float:
            value = float(text)
            if math.isnan(value):
                raise ValueError
            return value
        if kind is tuple:
            return _tuple(text, what, element)
        if kind is object:
            return int(text) if text.isdecimal() else text
        return str(text)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        cause = f"{what} is {with_article(kind.__name__)}, which {text!r:.80} is not"
        mends: dict[Any, str] = {
            bool: "write true or false",
            tuple: 'write a,b or (1, 2), with a comma after a single part: ("a",)',
        }
        raise ConfigError(cause, mends.get(kind, f"give {with_article(kind.__name__)}")) from error


def with_article(noun: str) -> str:
    """Returns a noun after its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def _tuple(text: str, what: str, element: type) -> tuple[Any, ...]:
    if not text.startswith("("):
        if element is tuple and text:
            raise ValueError(f"{text!r} is no tuple of tuples")
        return tuple(parse(part, element, f"each part of {what}") for part in text.split(",") if part)
    value = ast.literal_eval(text)
    if not isinstance(value, tuple):
        raise ValueError(f"{value!r} is no tuple")
    return value
