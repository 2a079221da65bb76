"""Typed reading of a config.json: a value of another kind is refused with its key, before anything computes with it."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lowbit.errors import ModelError

T = TypeVar("T")

_LARGEST_INTEGER = 2**63 - 1  # JSON knows no end, arithmetic with sizes does


class Fields:
    """The entries of one JSON object. A key that is absent or null reads as None (or as empty).

    Args:
      entries: what the file holds.
      where: its name in messages.

    Raises:
      ModelError: `entries` is no JSON object; from each method, a value of another kind.
    """

    def __init__(self, entries: object, where: str):
        if not isinstance(entries, Mapping):
            raise ModelError(f"{where} is {_shown(entries)}, not a JSON object", "download the model's files again")
        self.entries: Mapping[str, Any] = entries
        self.where = where

    def has(self, key: str) -> bool:
        """Whether the key stands there with a value."""
        return self.entries.get(key) is not None

    def integer(self, key: str, least: int = 1) -> int | None:
        """Returns a whole number of at least `least`."""
        return self._read(key, lambda value: _is_integer(value, least), int, f"a whole number of at least {least}")

    def integers(self, key: str, least: int = 0) -> tuple[int, ...]:
        """Returns whole numbers, from a list or from a single one."""

        def fits(value: Any) -> bool:
            return all(_is_integer(item, least) for item in _listed(value))

        def kept(value: Any) -> tuple[int, ...]:
            return tuple(int(item) for item in _listed(value))

        return self._read(key, fits, kept, f"a whole number of at least {least}, or a list of them") or ()

    def number(self, key: str) -> float | None:
        """Returns a finite number above 0."""
        return self._read(key, _is_positive, float, "a number above 0")

    def flag(self, key: str) -> bool:
        """Returns true or false; absent is false."""
        return bool(self._read(key, lambda value: isinstance(value, bool), bool, "true or false"))

    def text(self, key: str) -> str | None:
        """Returns a string."""
        return self._read(key, lambda value: isinstance(value, str), str, "a string")

    def texts(self, key: str) -> tuple[str, ...]:
        """Returns a list of strings."""

        def fits(value: Any) -> bool:
            return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)

        return self._read(key, fits, tuple, "a list of strings") or ()

    def section(self, key: str) -> "Fields":
        """Returns the entries of a JSON object below this key."""
        own = self.entries.get(key)
        return Fields({} if own is None else own, f"{key} in {self.where}")

    def _read(self, key: str, fits: Callable[[Any], bool], kept: Callable[[Any], T], wanted: str) -> T | None:
        value = self.entries.get(key)
        if value is None:
            return None
        if not fits(value):
            raise ModelError(
                f"{key} in {self.where} is {_shown(value)}, not {wanted}",
                f"correct {key}, or download the model again",
            )
        return kept(value)


def _is_integer(value: Any, least: int) -> bool:
    """Whether this is a whole number (2048.0 is one, true is none) that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (isinstance(value, int) or value.is_integer()) and least <= value <= _LARGEST_INTEGER


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _shown(value: object, longest: int = 60) -> str:
    """The value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= longest else text[:longest] + "..."
