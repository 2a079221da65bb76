"""What a run came to, and the record of it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from lowbit.evals import Evaluation
from lowbit.train.provenance import provenance
from lowbit.train.setup import Experiment
from lowbit.tree import bits_report


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to; also written to result.json.

    Attributes:
      run_folder: where everything lies.
      finished: False for a run that was told to stop (SIGTERM); it can be resumed.
      step: steps done.
      tokens: tokens trained on.
      seconds: wall-clock time over all parts of the run, compilation and evaluation included.
      tokens_per_s: training speed, compilation, evaluation and checkpoints left out; None for a run of one step.
      evaluations: by text, at the end; empty for a stopped run.
    """

    run_folder: Path
    finished: bool
    step: int
    tokens: int
    seconds: float
    tokens_per_s: float | None
    evaluations: dict[str, Evaluation]


def as_record(result: Result, experiment: Experiment) -> dict[str, Any]:
    """Returns the contents of result.json: the result, where it comes from, and bits per weight."""
    bits = bits_report(experiment.rules, experiment.params)
    quantized = bits.quantized_bits_per_weight
    return {
        **dataclasses.asdict(result),
        **provenance(experiment.config.seed),
        "run_folder": str(result.run_folder),
        "method": experiment.config.quant.method,
        # A model without quantized matrices has no such figure, and JSON no NaN.
        "bits_per_weight": None if math.isnan(quantized) else quantized,
        "bits_per_weight_model": bits.model_bits_per_weight,
    }
