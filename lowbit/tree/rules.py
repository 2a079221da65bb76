"""Ordered rules over parameter paths: the one way to say which parameter gets what.

The same table form gives each parameter its quantizer, its optimizer group and its place on the mesh.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from lowbit.errors import RuleError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule(Generic[T]):
    """Parameters whose whole path matches the regular expression `pattern` get `value`."""

    pattern: str
    value: T


def lookup(rules: Sequence[Rule[T]], path: str) -> T:
    """Returns the value of the first rule that matches the whole path.

    Raises:
      RuleError: no rule matches, or a pattern is no regular expression.
    """
    for rule in rules:
        if _compile(rule.pattern).fullmatch(path):
            return rule.value
    raise _uncovered([path], rules)


def assign(rules: Sequence[Rule[T]], paths: Iterable[str]) -> dict[str, T]:
    """Gives every path the value of the first rule that matches it.

    Args:
      rules: in order of precedence.
      paths: slash-separated parameter paths.

    Returns:
      `{path: value}`, one entry a path.

    Raises:
      RuleError: a path that no rule matches, a rule that no path reaches (nothing matches it, or earlier rules take all
        that it would match), or a pattern that is no regular expression. The message prints the paths.
    """
    names = list(paths)
    patterns = [_compile(rule.pattern) for rule in rules]
    values: dict[str, T] = {}
    used: set[int] = set()
    for path in names:
        index = next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(path)), None)
        if index is not None:
            values[path] = rules[index].value
            used.add(index)
    missing = [path for path in names if path not in values]
    if missing:
        raise _uncovered(missing, rules)
    for index, pattern in enumerate(patterns):
        if index not in used:
            raise _unused(pattern, names)
    return values


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RuleError(
            f"rule {pattern!r} is no regular expression: {error}", "mend the pattern; it must match whole paths"
        ) from error


def _uncovered(paths: Sequence[str], rules: Sequence[Rule[T]]) -> RuleError:
    return RuleError(
        f"no rule covers {_listed(paths)} (rules: {_listed([rule.pattern for rule in rules])})",
        "add a rule for them, or end the table with Rule('.*', None) to leave the rest alone",
    )


def _unused(pattern: re.Pattern[str], paths: Sequence[str]) -> RuleError:
    shadowed = [path for path in paths if pattern.fullmatch(path)]
    if shadowed:
        return RuleError(
            f"rule {pattern.pattern!r} is never reached: earlier rules take {_listed(shadowed)}",
            "move it before them, or remove it",
        )
    return RuleError(
        f"rule {pattern.pattern!r} matches nothing; the paths are {_listed(paths)}",
        "mend the pattern (it must match the whole path), or remove the rule",
    )


def _listed(names: Sequence[str], most: int = 40) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, and {len(names) - most} more" if len(names) > most else shown
