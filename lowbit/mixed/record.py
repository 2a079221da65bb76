"""An allocation as JSON: widths, the losses that they were chosen by, and where it all comes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import AllocationError, LowbitError
from lowbit.llama import LlamaConfig
from lowbit.mixed.allocation import Allocation, uniform
from lowbit.mixed.trial import Sensitivities, Trial
from lowbit.ptq import Target, make_target
from lowbit.ptq.widths import Widths

VERSION = 1
"""Of the form of the file."""

MEND = "give the JSON file that `allocate` wrote"


def to_record(
    cfg: LlamaConfig,
    allocation: Allocation,
    trial: Trial,
    sensitivities: Sensitivities,
    budget: float,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the file holds.

    Args:
      cfg: the model's sizes.
      allocation: the widths chosen.
      trial: what was tried.
      sensitivities: what it found.
      budget: bits/weight that were allowed.
      origin: source and its fingerprint, commit, seed, time.
    """
    alone = uniform(cfg, allocation.target, sensitivities)
    return {
        "allocation": VERSION,
        **origin,
        "by": sensitivities.by,
        **trial.record(),
        "budget_bits_per_weight": budget,
        "bits_per_weight": allocation.bits,
        "bytes": allocation.nbytes,
        "loss": allocation.loss,
        "widths": {path: list(widths) for path, widths in allocation.widths.by_path.items()},
        "uniform": [
            {"bits": bits, "bits_per_weight": one.bits, "bytes": one.nbytes, "loss": one.loss}
            for bits, one in alone.items()
        ],
        "losses": {path: losses.tolist() for path, losses in sensitivities.losses.items()},
    }


def read_losses(path: Path, wanted: Mapping[str, Any]) -> Sensitivities:
    """Reads the losses of an allocation, to choose from them under another budget.

    Args:
      path: of the file.
      wanted: what the file must say of source, trial and measure for its losses to be those asked for.

    Raises:
      AllocationError: no such file, or losses of something else; the message says in what they differ.
    """
    record = _read(path)
    try:
        odd = [key for key, value in json.loads(json.dumps(wanted)).items() if record[key] != value]
        if not odd:
            losses = {name: np.asarray(rows, np.float64) for name, rows in record["losses"].items()}
            return Sensitivities(record["by"], tuple(record["candidates"]), losses)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AllocationError(f"{path} holds no losses", MEND) from error
    raise AllocationError(
        f"the losses in {path} were found with another {', another '.join(odd)}",
        "give the same flags, or measure again",
    )


def read_widths(path: Path) -> tuple[Widths, Target]:
    """Reads the widths of an allocation, and the grid and granularity that they are for.

    Raises:
      AllocationError: no file, or none that `allocate` wrote with this version of the form.
    """
    record = _read(path)
    try:
        widths = Widths({name: tuple(map(float, row)) for name, row in record["widths"].items()})
        target = make_target(record["grid"], max(widths.used), record["granularity"], record["range"])
        for bits in widths.used:
            target.at(bits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AllocationError(f"{path} holds no allocation of widths", MEND) from error
    except LowbitError as error:
        raise AllocationError(f"{path} holds widths that cannot be: {error.cause}", MEND) from error
    return widths, target


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = record["allocation"]
    except OSError as error:
        raise AllocationError(f"the allocation {path} cannot be read: {error.strerror}", MEND) from error
    except (ValueError, KeyError, TypeError) as error:
        raise AllocationError(f"{path} holds no allocation of widths", MEND) from error
    if version != VERSION:
        raise AllocationError(
            f"{path} is an allocation of version {version}, and this reads version {VERSION}", "allocate again"
        )
    return record
