"""Two bits, one and four with other seeds: how much of a difference is the order of the training text?

Command: python -m lowbit sweep configs/sweeps/seeds.py -o runs/study_seeds
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 58 seconds a point, 5 minutes in all.
Expected: 2 bits 3.434 and 3.437 / 3.854 and 3.822 nats/token, 1 bit 4.034 / 4.793, 4 bits 3.091 / 3.142, float
    3.038 / 3.071: experiments/2026-11-22_seeds.
Record: python scripts/make_study_record.py configs/sweeps/seeds.py runs/study_seeds
"""

from lowbit.sweep import Sweep

# What differs from 2 bits in `RECIPES` of configs/qat_smollm2.py.
ONE_BIT = {
    "quant.bits": 1.0,
    "optimizer.learning_rate": 2e-3,
    "distill.weight": 1.0,
    "distill.hidden_weight": 0.05,
}
FOUR_BITS = {
    "quant.bits": 4.0,
    "train.batch_size": 16,
    "optimizer.learning_rate": 5e-4,
    "optimizer.float_learning_rate": 0.2,
    "distill.weight": 0.2,
    "distill.hidden_weight": 0.0,
}
FLOAT = {
    "quant.method": "float",
    "train.batch_size": 16,
    "optimizer.learning_rate": 1e-4,
    "distill.weight": 0.0,
    "distill.hidden_weight": 0.0,
}


def get_sweep() -> Sweep:
    points = [{"seed": 1}, {"seed": 2}, ONE_BIT | {"seed": 1}, FOUR_BITS | {"seed": 1}, FLOAT | {"seed": 1}]
    return Sweep("configs/qat_smollm2.py:bits=2", points, points_at_once=0)
