"""SmolLM2 at 4 bits: factors from zero, factors from what rounding loses, or scales alone, beside codes that stay.

Command: python -m lowbit sweep configs/sweeps/finetuning_4_bits.py -o runs/study_finetuning_4_bits
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy
    --config.data.valid=val.npy,wiki.npy
Hardware: one H100 with 80 GB.
Time: 45 to 58 seconds a point, 3 minutes 17 in all; half as long again beside another study.
Expected: nats/token above float: QLoRA 0.115 / 0.021, LoftQ 0.116 / 0.011, PEQA 0.136 / 0.021:
    experiments/2026-11-22_smollm2_finetuning_4_bits.
Record: python scripts/make_study_record.py configs/sweeps/finetuning_4_bits.py runs/study_finetuning_4_bits
"""

from lowbit.sweep import Sweep

LOFTQ = {
    "adapters.start": "loftq",
    "optimizer.learning_rate": 2e-4,
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
    "optimizer.learning_rate": 5e-5,
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
    return Sweep("configs/qlora_smollm2.py:bits=4", points, points_at_once=0)
