"""OneBit at equal tokens: which loss, and what is the paper's own recipe worth at this budget?

Command: python -m lowbit sweep configs/sweeps/onebit_losses.py -o runs/study_onebit_losses
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 136 seconds a point with two sweeps on a GPU at a time, measured; --resume goes on with what is left.
Expected: nats/token on val / WikiText-2 valid, divergence of 0.7 4.08 / 5.02, of 1 4.17 / 5.04, reverse 5.92 / 7.24,
    losses of the paper 3.95 / 4.61, its recipe 4.79 / 5.92
    (experiments/2026-11-24_smollm2_onebit_rates_starts_losses); confidence, attention and float not
    recorded yet.
Record: python scripts/make_study_record.py configs/sweeps/onebit_losses.py runs/study_onebit_losses
"""

from lowbit.sweep import Sweep

PAPER_LOSSES = {"distill.weight": 1.0, "distill.hidden_weight": 1 / 20.48}
PAPER_LAYER = {"model.linear_norm": True, "quant.latent": 0.01}


def get_sweep() -> Sweep:
    points = [
        {"distill.weight": 0.7},
        {"distill.weight": 1.0},
        {"distill.weight": 1.0, "distill.divergence": "reverse"},
        {"distill.weight": 1.0, "distill.divergence": "confidence"},
        {"distill.weight": 0.7, "distill.attention_weight": 0.1},
        PAPER_LOSSES,
        {**PAPER_LAYER, **PAPER_LOSSES, "optimizer.learning_rate": 4e-4, "optimizer.b2": 0.98},
        {"quant.method": "float", "distill.weight": 0.0, "optimizer.learning_rate": 1e-4},
    ]
    return Sweep("configs/onebit_smollm2.py:losses=forward", points, points_at_once=0)
