"""The records of a run's flight recorder, as arrays over steps and layers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import DataError, nearest

MEND = "remove the line, or train again"


@dataclasses.dataclass(frozen=True)
class FlightLog:
    """What recorder.jsonl holds; r records of parameters with L layers each.

    Attributes:
      steps: `[r]`, the steps that were recorded.
      figures: {parameter: {figure: `[r L]`}}; null, for what was no number, is nan.
      levels: {parameter: for each layer the share of each of its levels `[r levels]`}.
    """

    steps: np.ndarray
    figures: dict[str, dict[str, np.ndarray]]
    levels: dict[str, list[np.ndarray]]

    def of(self, figure: str) -> dict[str, np.ndarray]:
        """Returns one figure `[r L]` of each parameter that has it, by the parameter's short name.

        Raises:
          DataError: no parameter has it; the message names the nearest that one has.
        """
        found = {short_name(path): own[figure] for path, own in self.figures.items() if figure in own}
        if not found:
            known = {name for own in self.figures.values() for name in own}
            raise DataError(f"the recorder knows no {figure!r}", nearest(figure, known))
        return found


def short_name(path: str) -> str:
    """Returns what figures call a parameter: `q_proj` for `layers/attn/q_proj/kernel`."""
    return path.split("/")[-2]


def read_flight_log(path: str | Path) -> FlightLog:
    """Reads a recorder.jsonl. A last line without its newline belongs to a run that was stopped, and is left out.

    Raises:
      DataError: the file is missing or empty, a line is no record, or two lines are of different parameters.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no records at {path}", "train with log.recorder_every_steps above 0") from None
    rows = [_row(line, f"line {number} of {path}") for number, line in enumerate(text.split("\n")[:-1], start=1)]
    if not rows:
        raise DataError(f"{path} holds no record", "train for more than log.recorder_every_steps")
    first = rows[0]["parameters"]
    for number, row in enumerate(rows, start=1):
        if _shape(row["parameters"]) != _shape(first):
            raise DataError(f"line {number} of {path} is of other parameters than the first", MEND)
    figures: dict[str, dict[str, np.ndarray]] = {}
    levels: dict[str, list[np.ndarray]] = {}
    for name, own in first.items():
        parts = [row["parameters"][name] for row in rows]
        figures[name] = {key: np.array([part[key] for part in parts], float) for key in own if key != "levels"}
        layers = range(len(own["levels"]))
        levels[name] = [np.array([part["levels"][layer] for part in parts], float) for layer in layers]
    return FlightLog(np.array([row["step"] for row in rows]), figures, levels)


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row["step"], int) and all("levels" in own for own in row["parameters"].values()):
            return dict(row)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{where} is no record of a step: {line:.60}", MEND)


def _shape(parameters: dict[str, Any]) -> dict[str, Any]:
    """What two records must have in common to stand in one array."""
    return {
        name: {key: [len(of) for of in value] if key == "levels" else len(value) for key, value in own.items()}
        for name, own in parameters.items()
    }
