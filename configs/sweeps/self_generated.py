"""Text that the teacher wrote itself against real text, two bits at equal tokens, on data that neither saw.

Command: python -m lowbit sweep configs/sweeps/self_generated.py -o runs/study_text
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.valid=val.npy,wiki.npy
    after train.npy was put where it runs, and
    python -m lowbit synthesize SmolLM2-135M-Instruct.Q4_1.gguf -o tokens/self --tokens 11e6 --separator 0
Hardware: one H100 with 80 GB.
Time: about 80 seconds a point, 7 minutes in all, and 3 to 4 for the text (not measured yet).
Expected: not measured yet; the mix on real text has 3.48 / 3.94 nats/token (experiments/2026-11-22_smollm2_recipe).
    Validation text is of the sources of the real text, WikiText-2 is of neither.
Record: python scripts/make_study_record.py configs/sweeps/self_generated.py runs/study_text
"""

from lowbit.sweep import Sweep

REAL, SELF = "train.npy", "tokens/self"


def get_sweep() -> Sweep:
    points = [
        {"data.train": REAL, "distill.weight": 0.5},
        {"data.train": SELF, "distill.weight": 0.5},
        {"data.train": REAL, "distill.weight": 1.0},
        {"data.train": SELF, "distill.weight": 1.0},
        {"data.train": REAL, "distill.weight": 0.0, "quant.method": "float", "optimizer.learning_rate": 1e-4},
    ]
    return Sweep("configs/qat_smollm2.py:bits=2,recipe=logits", points, points_at_once=0)
