"""The shipped model: do scales start better at the least squared error of the weights, or at a multiple of their mean?

Command: python -m lowbit sweep configs/sweeps/scale_starts.py -o runs/study_scale_starts
Hardware: 2 CPU cores.
Time: 12 minutes for all 8 points beside other work.
Expected: nats/token above float: 2 bits mse 0.63, mean 0.66, max 0.87; 1 bit 1.43 and 1.70; 4 bits 0.06 and 0.13:
    experiments/2026-11-22_scale_starts.
Record: python scripts/make_study_record.py configs/sweeps/scale_starts.py runs/study_scale_starts
"""

from lowbit.sweep import Sweep

ONE_BIT = {"quant.bits": 1.0, "optimizer.learning_rate": 1e-3}
FOUR_BITS = {"quant.bits": 4.0, "optimizer.learning_rate": 1.5e-4}


def get_sweep() -> Sweep:
    points = [
        {"quant.scale_init": "mse"},
        {"quant.scale_init": "mean"},
        {"quant.scale_init": "max"},
        ONE_BIT | {"quant.scale_init": "mse"},
        ONE_BIT | {"quant.scale_init": "mean"},
        FOUR_BITS | {"quant.scale_init": "mse"},
        FOUR_BITS | {"quant.scale_init": "mean"},
        {"quant.method": "float", "optimizer.learning_rate": 1.5e-4},
    ]
    return Sweep("configs/qat_quickstart.py:bits=2", points, points_at_once=0)
