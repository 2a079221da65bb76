"""One question of a task, and files of them."""

import bz2
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from lowbit.errors import DataError

DELIMITER = " "
"""Between a context and a choice."""


@dataclass(frozen=True)
class Item:
    """A context and its continuations, one of which is right.

    Attributes:
      contexts: what stands before each choice: one for all, or one a choice.
      choices: continuations, without the space in front of them.
      gold: index of the right one.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (*self.contexts, *self.choices)):
            raise DataError("contexts and choices must be strings", "mend this item")
        if not self.choices or not all(self.choices):
            raise DataError("an item without choices, or with an empty one", "give at least one, none of them empty")
        if len(self.contexts) not in (1, len(self.choices)):
            raise DataError(
                f"{len(self.contexts)} contexts for {len(self.choices)} choices", "give one, or one a choice"
            )
        if not isinstance(self.gold, int) or not 0 <= self.gold < len(self.choices):
            raise DataError(
                f"the right choice is {self.gold!r}, of {len(self.choices)}", "count choices from 0, as a whole number"
            )

    def pairs(self) -> list[tuple[str, str]]:
        """Returns (context, continuation) of each choice."""
        contexts = self.contexts * (len(self.choices) // len(self.contexts))
        return [(context, DELIMITER + choice) for context, choice in zip(contexts, self.choices, strict=True)]


def plain_item(row: Mapping[str, Any]) -> Item:
    """Returns the item of a row {"context": text or one a choice, "choices": [text, ...], "gold": index from 0}."""
    context = row["context"]
    contexts = (context,) if isinstance(context, str) else tuple(context)
    return Item(contexts, tuple(row["choices"]), row["gold"])


def read_items(path: str | Path, read: Callable[[Mapping[str, Any]], Item], first: int | None = None) -> list[Item]:
    """Reads a JSONL file (also .gz, .bz2), one item a line.

    Args:
      path: the file. Rows with a field `gold` are items as `plain_item` takes them, whatever the task.
      read: makes an item of any other row: a reader of `lowbit.evals.tasks.rows`.
      first: only so many items; None takes all.

    Raises:
      DataError: the file is missing or damaged, has fewer items, or a row is not what it must be.
    """
    path = Path(path)
    items = []
    try:
        with _open(path) as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for number, line in islice(lines, first):
                items.append(_item(line, read, f"{path}:{number}"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "check the path, and that it is JSONL in UTF-8") from error
    if len(items) < max(1, first or 1):
        raise DataError(
            f"{path} has {len(items)} items, and {first or 'some'} were asked for", "ask for fewer, or give more"
        )
    return items


def _item(line: str, read: Callable[[Mapping[str, Any]], Item], place: str) -> Item:
    try:
        row = json.loads(line)
        return plain_item(row) if "gold" in row else read(row)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}", "put one JSON object on each line") from error
    except KeyError as error:
        raise DataError(
            f"{place} has no field {error}", "give the task's own rows, or rows with context, choices and gold"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place} is no item of this task: {error}", "compare it with docs/evaluation.md") from error
    except DataError as error:
        raise DataError(f"{place}: {error.cause}", error.mend) from error


def _open(path: Path) -> TextIOWrapper:
    match path.suffix:
        case ".bz2":
            return bz2.open(path, "rt", encoding="utf-8")
        case ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        case _:
            return path.open(encoding="utf-8")
