"""The shipped model at two bits: a teacher that runs, a cache of its 8 or 32 likeliest tokens, or no teacher at all?

Command: python -m lowbit sweep configs/sweeps/quickstart_teacher.py -o runs/study_quickstart_teacher
    after, for K of 8 and 32:
    python -m lowbit cache-teacher configs/qat_quickstart.py:bits=2 --config.distill.weight=0.5 --k K
    -o caches/quickstart_kK
Hardware: 2 CPU cores.
Time: 16 minutes for all 8 points beside other work, a minute each where the cores are free; half a minute a cache.
Expected: nats/token above float: no teacher 0.63, half of each 0.53 (caches 0.55 and 0.56), the teacher alone 0.48
    (0.51 and 0.57): experiments/2026-11-22_quickstart_teacher.
Record: python scripts/make_study_record.py configs/sweeps/quickstart_teacher.py runs/study_quickstart_teacher
"""

from lowbit.sweep import Sweep

LIVE, K8, K32 = "", "caches/quickstart_k8", "caches/quickstart_k32"


def get_sweep() -> Sweep:
    points = [
        {"distill.weight": 0.0, "distill.cache": LIVE},
        {"distill.weight": 0.5, "distill.cache": LIVE},
        {"distill.weight": 0.5, "distill.cache": K8},
        {"distill.weight": 0.5, "distill.cache": K32},
        {"distill.weight": 1.0, "distill.cache": LIVE},
        {"distill.weight": 1.0, "distill.cache": K8},
        {"distill.weight": 1.0, "distill.cache": K32},
        {"quant.method": "float", "distill.weight": 0.0, "optimizer.learning_rate": 1.5e-4},
    ]
    return Sweep("configs/qat_quickstart.py:bits=2", points, points_at_once=0)
