"""One context of MLIR for many programs.

Jax makes a context for every program that it lowers, and fills it with all dialects: four milliseconds, a fifth to a
fourth of what it takes to make a program of one operation, of which the suite makes tens of thousands.
"""

import threading
from collections.abc import Callable
from typing import Any

from jax._src.interpreters import mlir

PROGRAMS = 200
"""A context keeps the types, attributes and places that its programs name for as long as it lives."""


def share_contexts() -> None:
    """Lets `PROGRAMS` programs that follow each other have one context; nothing happens where jax has none to make."""
    make = getattr(mlir, "make_ir_context", None)
    if make is not None:
        mlir.make_ir_context = shared(make, PROGRAMS)


def shared(make: Callable[[], Any], times: int) -> Callable[[], Any]:
    """Returns what gives the same of `make` so many times, and then another, to each thread its own."""
    own = threading.local()

    def give() -> Any:
        given = getattr(own, "given", 0)
        if given % times == 0:
            own.made = make()
        own.given = given + 1
        return own.made

    return give
