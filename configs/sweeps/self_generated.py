"""Text that the teacher wrote itself against real text, two bits at equal tokens, on data that neither saw.

Command: python -m lowbit sweep configs/sweeps/self_generated.py -o runs/study_text
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.valid=val.npy,wiki.npy
    after train.npy was put where it runs, and
    python -m lowbit synthesize SmolLM2-135M-Instruct.Q4_1.gguf -o tokens/self --tokens 11e6 --separator 0
Hardware: one H100 with 80 GB.
Time: 4.5 minutes for the points, and 2 min 38 s for the text with --attention kernel --batch 2048.
Expected: real text 3.48 / 3.99 nats/token and its divergence alone 3.60 / 3.89; its own 4.14 / 4.27 and 4.04 / 4.17.
    Record: experiments/2026-11-22_self_generated.
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
