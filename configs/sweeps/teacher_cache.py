"""A teacher that runs beside the student, or a cache of its likeliest tokens: what does the truncation cost?

Command: python -m lowbit sweep configs/sweeps/teacher_cache.py -o runs/study_cache
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
    after, for K of 8 and 32, with the same three settings:
    python -m lowbit cache-teacher configs/qat_smollm2.py:bits=2,recipe=logits --k K -o caches/smollm2_kK
Hardware: one H100 with 80 GB.
Time: about 80 seconds a point by itself, not measured; with two runs on a GPU a cache of 8 took 29 seconds, of 32 111.
Expected: nats/token on val / WikiText-2 valid, half a teacher that runs 3.48 / 3.97, a cache of 8 3.50 / 4.15
    (printed lines in experiments/2026-11-24_smollm2_distillation_losses); the others not recorded yet.
Record: python scripts/make_study_record.py configs/sweeps/teacher_cache.py runs/study_cache
"""

from lowbit.sweep import Sweep

LIVE, K8, K32 = "", "caches/smollm2_k8", "caches/smollm2_k32"


def get_sweep() -> Sweep:
    points = [
        {"distill.weight": 0.5, "distill.cache": LIVE},
        {"distill.weight": 0.5, "distill.cache": K8},
        {"distill.weight": 0.5, "distill.cache": K32},
        {"distill.weight": 1.0, "distill.cache": LIVE},
        {"distill.weight": 1.0, "distill.cache": K32},
        {"quant.method": "float", "distill.weight": 0.0, "optimizer.learning_rate": 1e-4},
    ]
    return Sweep("configs/qat_smollm2.py:bits=2,recipe=logits", points, points_at_once=0)
