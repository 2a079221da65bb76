"""SmolLM2 at 2 bits: factors from zero, factors from what rounding loses, or scales alone, beside codes that stay.

Command: python -m lowbit sweep configs/sweeps/finetuning_2_bits.py -o runs/study_finetuning_2_bits
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 44 to 56 seconds a point, 3 minutes 12 in all; half as long again beside another study.
Expected: nats/token above float: LoftQ 0.68 / 0.71, QLoRA 1.36 / 1.80, PEQA 1.53 / 1.82:
    experiments/2026-11-22_smollm2_finetuning_2_bits.
Record: python scripts/make_study_record.py configs/sweeps/finetuning_2_bits.py runs/study_finetuning_2_bits
"""

from lowbit.sweep import Sweep

LOFTQ = {
    "adapters.start": "loftq",
    "optimizer.learning_rate": 3e-4,
    "optimizer.b2": 0.95,
    "optimizer.clip_norm": 1.0,
    "schedule.shape": "cosine",
}
PEQA = {
    "adapters.rank": 0,
    "quant.method": "rtn",
    "quant.symmetric": False,
    "quant.codes": "fixed",
    "optimizer.frozen": ("params/.*", "quant/.*/zero"),
    "optimizer.learning_rate": 3e-4,
    "optimizer.b2": 0.95,
    "optimizer.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.warmup": 0.05,
}
FLOAT = {
    "quant.method": "float",
    "adapters.rank": 0,
    "optimizer.frozen": (),
    "optimizer.learning_rate": 1e-4,
    "optimizer.b2": 0.95,
    "optimizer.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.warmup": 0.05,
}


def get_sweep() -> Sweep:
    points = [
        {"adapters.start": "zero"},  # QLoRA
        LOFTQ,
        PEQA,
        FLOAT,
    ]
    # Each a run of its own: they do not have the same parameters.
    return Sweep("configs/qlora_smollm2.py:bits=2", points, points_at_once=0)
