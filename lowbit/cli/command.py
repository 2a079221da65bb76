"""The form of a command: its arguments as data."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
      names: a positional's single name, or a flag's spellings with their dashes.
      help: one line.
      options: what else `argparse.ArgumentParser.add_argument` is told.
    """

    names: tuple[str, ...]
    help: str
    options: Mapping[str, Any]

    @property
    def is_flag(self) -> bool:
        """Whether it begins with a dash."""
        return self.names[0].startswith("-")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: what is typed.
      summary: one line, for the overview.
      description: what it does, in a few sentences.
      examples: command lines without the program's name.
      arguments: in the order of the help.
    """

    name: str
    summary: str
    description: str
    examples: tuple[str, ...]
    arguments: tuple[Argument, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """Every spelling of every flag."""
        return ("-h", "--help", *(name for a in self.arguments if a.is_flag for name in a.names))


def argument(*names: str, help: str, **options: Any) -> Argument:
    """Returns the argument of these names, as `argparse.ArgumentParser.add_argument` is called."""
    return Argument(names, help, options)


def positive(text: str) -> int:
    """Parses a whole number of 1 or more; raises argparse's own error, which names the flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def whole(text: str) -> int:
    """Parses a whole number of 0 or more; raises argparse's own error, which names the flag."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)
