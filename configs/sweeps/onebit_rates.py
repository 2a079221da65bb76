"""OneBit and ParetoQ at one bit and equal tokens: which learning rate do they want?

Command: python -m lowbit sweep configs/sweeps/onebit_rates.py -o runs/study_onebit_rates
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 14 minutes in all with two sweeps on a GPU at a time, measured; about 90 seconds a point by itself, not measured.
Expected: nats/token on val / WikiText-2 valid, OneBit at 1e-3 4.01 / 4.84, 2e-3 3.88 / 4.63, 4e-3 3.86 / 4.63
    (experiments/2026-11-24_smollm2_onebit_rates_starts_losses); slower scales, ParetoQ and float not
    recorded yet.
Record: python scripts/make_study_record.py configs/sweeps/onebit_rates.py runs/study_onebit_rates
"""

from lowbit.sweep import Sweep


def get_sweep() -> Sweep:
    points = [
        {"quant.method": "onebit", "optimizer.learning_rate": 1e-3},
        {"quant.method": "onebit", "optimizer.learning_rate": 2e-3},
        {"quant.method": "onebit", "optimizer.learning_rate": 4e-3},
        {"quant.method": "onebit", "optimizer.learning_rate": 2e-3, "optimizer.scale_learning_rate": 0.1},
        {"quant.method": "paretoq", "optimizer.learning_rate": 4e-3},
        {"quant.method": "float", "distill.weight": 0.0, "distill.hidden_weight": 0.0, "optimizer.learning_rate": 1e-4},
    ]
    return Sweep("configs/onebit_smollm2.py", points, points_at_once=0)
