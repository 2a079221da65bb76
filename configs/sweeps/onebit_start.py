"""One bit at equal tokens: OneBit's signs and two vectors, from each start, against ParetoQ's one scale an output.

Command: python -m lowbit sweep configs/sweeps/onebit_start.py -o runs/study_onebit_start
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 15 minutes in all with two sweeps on a GPU at a time, measured; about 90 seconds a point by itself, not measured.
Expected: nats/token on val / WikiText-2 valid, ParetoQ 3.97 / 4.82, OneBit from mse 3.87 / 4.65, svd 3.88 / 4.63
    (experiments/2026-11-24_smollm2_onebit_rates_starts_losses); mean 4.11 / 5.06 with other losses, latent
    weights and LayerNorms 4.80 / 5.94 with the paper's (experiments/2026-11-22_smollm2_onebit).
Record: python scripts/make_study_record.py configs/sweeps/onebit_start.py runs/study_onebit_start
"""

from lowbit.sweep import Sweep


def get_sweep() -> Sweep:
    points = [
        {"quant.method": "paretoq", "quant.scale_init": "mse"},
        {"quant.method": "onebit", "quant.scale_init": "mse"},  # by NMF
        {"quant.method": "onebit", "quant.scale_init": "svd"},  # the same product: how much chance is there?
        {"quant.method": "onebit", "quant.scale_init": "mean"},
        # The paper's latent weights, of one magnitude, and its layer, with a LayerNorm behind.
        {"quant.method": "onebit", "quant.scale_init": "mse", "quant.latent": 0.01},
        {"quant.method": "onebit", "quant.scale_init": "mse", "quant.latent": 0.01, "model.linear_norm": True},
        {"quant.method": "float", "distill.weight": 0.0, "distill.hidden_weight": 0.0, "optimizer.learning_rate": 1e-4},
    ]
    return Sweep("configs/onebit_smollm2.py", points, points_at_once=0)
