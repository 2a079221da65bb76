"""Two bits at equal tokens: cross entropy, divergences from the float model, a mix: which loss is best on which text?

Command: python -m lowbit sweep configs/sweeps/distillation_losses.py -o runs/study_losses
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 11 minutes in all with two sweeps on a GPU at a time, measured; about 80 seconds a point by itself, not measured.
Expected: nats/token on val / WikiText-2 valid, cross entropy 3.55 / 4.45, half divergence 3.48 / 3.97, divergence
    alone 3.60 / 3.90 (experiments/2026-11-24_smollm2_distillation_losses); reverse, confidence and float not recorded
    yet.
Record: python scripts/make_study_record.py configs/sweeps/distillation_losses.py runs/study_losses
"""

from lowbit.sweep import Sweep


def get_sweep() -> Sweep:
    points = [
        {"distill.weight": 0.0, "distill.divergence": "forward"},
        {"distill.weight": 0.5, "distill.divergence": "forward"},
        {"distill.weight": 1.0, "distill.divergence": "forward"},
        {"distill.weight": 1.0, "distill.divergence": "reverse"},
        {"distill.weight": 1.0, "distill.divergence": "confidence"},
        {"quant.method": "float", "distill.weight": 0.0, "optimizer.learning_rate": 1e-4},
    ]
    # Each a run of its own: no two of them share a program.
    return Sweep("configs/qat_smollm2.py:bits=2,recipe=logits", points, points_at_once=0)
