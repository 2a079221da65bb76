"""An allocation as JSON: widths, the losses that they were chosen by, and where it all comes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.errors import AllocationError, LowbitError
from lowbit.llama import LlamaConfig
from lowbit.mixed.allocation import Allocation, uniform
from lowbit.mixed.trial import Sensitivities, Trial
from lowbit.ptq import Target, make_target
from lowbit.ptq.widths import Widths

VERSION = 1
"""Of the form of the file."""


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


def read_widths(path: Path) -> tuple[Widths, Target]:
    """Reads the widths of an allocation, and the grid and granularity that they are for.

    Raises:
      AllocationError: no file, or none that `allocate` wrote with this version of the form.
    """
    mend = "give the JSON file that `allocate` wrote"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["allocation"]
        if version != VERSION:
            raise AllocationError(
                f"{path} is an allocation of version {version}, and this reads version {VERSION}", "allocate again"
            )
        widths = Widths({name: tuple(map(float, row)) for name, row in record["widths"].items()})
        target = make_target(record["grid"], max(widths.used), record["granularity"], record["range"])
        for bits in widths.used:
            target.at(bits)
    except OSError as error:
        raise AllocationError(f"the allocation {path} cannot be read: {error.strerror}", mend) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AllocationError(f"{path} holds no allocation of widths", mend) from error
    except AllocationError:
        raise
    except LowbitError as error:
        raise AllocationError(f"{path} holds widths that cannot be: {error.cause}", mend) from error
    return widths, target
