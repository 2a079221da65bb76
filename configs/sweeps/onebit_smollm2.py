"""OneBit against ParetoQ at 1 bit and equal tokens: what are start, latent weights, norms and losses worth?

Command: python -m lowbit sweep configs/sweeps/onebit_smollm2.py -o runs/sweep_onebit
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy --config.data.valid=val.npy
Hardware: one H100 with 80 GB.
Time: about a minute and a half a point (not measured yet).
Expected: not measured yet.
"""

from lowbit.sweep import Sweep

PAPER_LOSSES = {"distill.weight": 1.0, "distill.hidden_weight": 1 / 20.48}
PAPER_LAYER = {"model.linear_norm": True, "quant.latent": 0.01}


def get_sweep() -> Sweep:
    points = [
        {"quant.method": "paretoq"},
        {},
        {"quant.scale_init": "mean"},
        {"quant.latent": 0.01},
        {"model.linear_norm": True},
        PAPER_LAYER,
        PAPER_LOSSES,
        {"distill.weight": 1.0},
        {"distill.divergence": "reverse"},
        {"distill.divergence": "confidence"},
        {"distill.attention_weight": 0.1},
        {**PAPER_LAYER, **PAPER_LOSSES, "optimizer.learning_rate": 4e-4, "optimizer.b2": 0.98},
        {"optimizer.learning_rate": 1e-3},
        {"optimizer.learning_rate": 4e-3},
        {"optimizer.scale_learning_rate": 0.1},
        {"quant.method": "paretoq", "optimizer.learning_rate": 4e-3},
    ]
    # Each a run of its own: hardly two of them share a program.
    return Sweep("configs/onebit_smollm2.py", points, points_at_once=0)
