"""Two bits at equal tokens: warm-up, clipping, weight decay and the shape of the schedule, each beside the recipe.

Command: python -m lowbit sweep configs/sweeps/training_settings.py -o runs/study_settings
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 64 seconds a point, 9 minutes in all.
Expected: 3.439 to 3.452 / 3.781 to 3.837 nats/token, no setting better than the recipe by more than chance:
    experiments/2026-11-22_training_settings.
Record: python scripts/make_study_record.py configs/sweeps/training_settings.py runs/study_settings
"""

import math

from lowbit.sweep import Sweep


def get_sweep() -> Sweep:
    points = [
        {"schedule.warmup": 0.05},  # the recipe
        {"schedule.warmup": 0.0},
        {"schedule.warmup": 0.2},
        {"optimizer.clip_norm": math.inf},
        {"optimizer.clip_norm": 0.3},
        {"optimizer.weight_decay": 0.1},
        {"schedule.shape": "linear"},
        {"quant.method": "float", "distill.weight": 0.0, "distill.hidden_weight": 0.0, "optimizer.learning_rate": 1e-4},
    ]
    # Each a run of its own: one at a time fits a GPU with its teacher.
    return Sweep("configs/qat_smollm2.py:bits=2", points, points_at_once=0)
