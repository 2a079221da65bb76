"""Two bits at equal tokens: cross entropy, divergences from the float model, a mix: which loss is best on which text?

Command: python -m lowbit sweep configs/sweeps/distillation_losses.py -o runs/study_losses
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: about 80 seconds a point, 8 minutes in all (not measured yet).
Expected: not measured yet; the mix has 3.48 / 3.94 nats/token, cross entropy alone 3.57 / 4.50
    (experiments/2026-11-22_smollm2_recipe and _batch_and_teacher).
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
