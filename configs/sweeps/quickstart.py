"""The shipped model at five widths, four learning rates and two seeds: which rate does each width want?

Command: python -m lowbit sweep configs/sweeps/quickstart.py -o runs/sweep_quickstart
Hardware: 2 CPU cores.
Time: 13 seconds a point where the cores were free; 33 minutes for all 40, most of it beside other work.
Expected: the record in experiments/2026-11-22_sweep_quickstart.
"""

from lowbit.sweep import Sweep, product


def get_sweep() -> Sweep:
    axes = {
        "quant.bits": (1, 1.58, 2, 3, 4),
        "optimizer.learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
        "seed": (0, 1),
    }
    # A quarter of the quickstart's tokens.
    return Sweep("configs/qat_quickstart.py", product(axes), overrides=("train.tokens=40_000",))
