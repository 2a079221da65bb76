"""The shipped model at 2 bits, a quarter of its training text at equal steps: which quarter is worth more?

Command: python -m lowbit sweep configs/sweeps/coreset.py -o runs/study_coreset
Hardware: 2 CPU cores.
Time: 13 minutes for all 7 points beside other work.
Expected: nats/token above float: error 0.527, mixed 0.531, random and drawn anew 0.538, disagreement 0.545, random once
    0.550, all windows 0.526: experiments/2026-11-23_coreset.
Record: python scripts/make_study_record.py configs/sweeps/coreset.py runs/study_coreset
"""

from lowbit.sweep import Sweep

TEACHER = {"distill.weight": 0.5}
QUARTER = TEACHER | {"coreset.share": 0.25}
NEVER_AGAIN = {"coreset.every_steps": 1_000_000}
"""Windows are chosen once, before the first step."""


def get_sweep() -> Sweep:
    points = [
        QUARTER | NEVER_AGAIN | {"coreset.score": "random"},
        QUARTER | {"coreset.score": "random"},
        QUARTER | {"coreset.score": "error"},
        QUARTER | {"coreset.score": "disagreement"},
        QUARTER | {"coreset.score": "mixed"},
        TEACHER | {"coreset.share": 1.0},
        {"quant.method": "float", "optimizer.learning_rate": 1.5e-4},
    ]
    return Sweep("configs/qat_quickstart.py:bits=2", points, points_at_once=0)
