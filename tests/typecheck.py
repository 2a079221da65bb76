"""Beartype for functions that are defined again and again: what it made of a signature serves all that have it.

Jaxtyping gives the type checker functions of its own making: they have the signature of the function that is to be
checked and no closure, and do nothing. A quantizer's closures are defined anew with every quantizer; making a checker
of each is a tenth to a fifth of what such tests take, although their signatures are the same each time.

A checker is made when it is called first: every worker imports the whole package, and calls a part of it.
"""

import collections
import functools
from collections.abc import Callable, Hashable
from typing import Any, get_args, get_origin

import beartype
from jaxtyping import AbstractArray

CONF = beartype.BeartypeConf(is_pep484_tower=True)
KEPT = 10_000
"""Many times as many as the package has signatures."""

_checkers: collections.OrderedDict[Hashable, Callable[..., Any]] = collections.OrderedDict()


def once_a_signature(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what calls `beartype(fn)`, or that of another function with the same code, types and defaults."""
    hints = tuple((name, spelled(hint)) for name, hint in fn.__annotations__.items())
    # Beartype looks at defaults when it makes a checker. Those of a checker that is kept live as long as it does.
    defaults = *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()
    key = fn.__module__, fn.__qualname__, fn.__code__, hints, tuple(map(id, defaults))
    if key not in _checkers:
        _checkers[key] = made_when_called(fn)
        if len(_checkers) > KEPT:
            _checkers.popitem(last=False)
    return _checkers[key]


def made_when_called(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `beartype(fn)`, which is made at the first call."""
    made = None

    @functools.wraps(fn)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        if made is None:
            made = beartype.beartype(fn, conf=CONF)
        return made(*args, **kwargs)

    return check


def spelled(hint: Any) -> Hashable:
    """Returns what is equal for equal hints: `Float[Array, "k n"]` makes another class each time it is evaluated."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray) and hint is not AbstractArray:
        return AbstractArray, hint.__name__, spelled(hint.array_type), hint.dtype, hint.dim_str
    if isinstance(hint, list):  # the arguments of a Callable
        return list, *map(spelled, hint)
    if origin := get_origin(hint):
        return type(hint), origin, *map(spelled, get_args(hint))
    return type(hint), hint
