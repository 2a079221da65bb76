"""What the report reads: the rows of results.json and the facts of the run that made them."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from lowbit.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class Row:
    """One model that was evaluated: how it was made, how well it predicts and how large it is.

    Args:
      method: how the weights came about: "float", "rtn" (rounding, scales from max|w|), "rtn_mse" (scales of least
        squared error), "qat", or the name of another method.
      bits: nominal width; 1.58 stands for three levels.
      nll: mean negative log-likelihood on held-out text, nats/token.
      perplexity: exp(nll).
      bits_per_byte: nll in bits per byte of UTF-8 text.
      bits_per_weight: stored bits per weight over the quantized matrices, scales included.
      bits_per_weight_model: the same over every parameter of the model.
      bytes: size of the file that holds the model.
      seconds: wall-clock time that making the model took.
      verified: whether the packed file was shown equal to the trained model; None where there is none.
      sample: text that the model wrote, or None.
      metrics: path of the run's metrics.jsonl, relative to the results file, or None.
    """

    method: str
    bits: float
    nll: float
    perplexity: float
    bits_per_byte: float
    bits_per_weight: float
    bits_per_weight_model: float
    bytes: int
    seconds: float
    verified: bool | None
    sample: str | None
    metrics: str | None

    @property
    def name(self) -> str:
        """The row's name for people: `float`, or method and width such as `qat 1.58 bit`."""
        return self.method if self.method == "float" else f"{self.method} {self.bits:g} bit"


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the rows come from: enough to make them again.

    Args:
      command: the command line.
      commit: git commit of the code.
      date: when the run ended, ISO 8601.
      seed: seed of every random choice.
      machine: facts such as {"cpu": ..., "cores": ..., "jax": ...}, shown in this order.
    """

    command: str
    commit: str
    date: str
    seed: int
    machine: dict[str, Any]


def trained_and_rounded(rows: Sequence[Row], bits: float) -> tuple[Row | None, Row | None]:
    """Returns the trained model of a width and the best that rounding does at it; None for what was not measured."""
    trained = next((row for row in rows if row.method == "qat" and row.bits == bits), None)
    rounded = [row for row in rows if row.method.startswith("rtn") and row.bits == bits]
    return trained, min(rounded, key=lambda row: row.nll, default=None)


def rows_from(items: Sequence[Any], source: str = "results") -> list[Row]:
    """Checks rows read from JSON and gives them types.

    Args:
      items: one JSON object a row, with exactly the fields of `Row`.
      source: the name that errors use for where the rows stand.

    Raises:
      DataError: a key is missing or unknown, or a value has the wrong type or is not finite.
    """
    return [typed(Row, item, f"row {i} of {source}") for i, item in enumerate(items)]


def read_rows(path: str | Path) -> list[Row]:
    """Reads results.json, a JSON list of rows.

    Raises:
      DataError: the file is missing or no JSON list, or a row is not as `Row` says.
    """
    items = read_json(Path(path))
    if not isinstance(items, list):
        raise DataError(
            f"{path} holds a JSON {type(items).__name__}, not a list of rows",
            "write a list of objects, one a model; what describes the whole run belongs into run.json",
        )
    return rows_from(items, str(path))


def read_run(path: str | Path) -> Run:
    """Reads run.json, the facts of the run.

    Raises:
      DataError: the file is missing or no JSON object, or a field is not as `Run` says.
    """
    return typed(Run, read_json(Path(path)), str(path))


def read_json(path: Path) -> Any:
    """Reads a file of results; raises DataError where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no results at {path}", "run `make quickstart`, or give the path of a run") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}", "write the file again; it may be cut short") from None


_Record = typing.TypeVar("_Record")


def typed(record: type[_Record], item: Any, where: str) -> _Record:
    """Makes a dataclass such as `Row` of a JSON object.

    Raises:
      DataError: no object, a key is missing or unknown, or a value has the wrong type or is not finite; `where` says
        what was read.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is not a JSON object: {item!r:.60}", "write one object with named fields")
    hints = typing.get_type_hints(record)
    missing = [key for key in hints if key not in item]
    if missing:
        raise DataError(f"{where} lacks {', '.join(map(repr, missing))}", f"give every one of: {', '.join(hints)}")
    unknown = [key for key in item if key not in hints]
    if unknown:
        raise DataError(f"{where} has the unknown key {unknown[0]!r}", nearest(str(unknown[0]), hints))
    return record(**{key: _checked(item[key], hint, f"{key!r} in {where}") for key, hint in hints.items()})


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the type `hint` (an int passes for a float), or raises DataError."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    choices = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if float in choices and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is a subclass of int in Python, and must not pass for a number here.
    if not any(isinstance(value, choice) and (choice is bool) == isinstance(value, bool) for choice in choices):
        wanted = " or ".join("null" if choice is NoneType else choice.__name__ for choice in choices)
        raise DataError(f"{where} is {value!r:.60}", f"write a value of type {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}", "leave out a model that diverged, or find out why it did")
    return value
