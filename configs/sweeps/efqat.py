"""The shipped model, rounded by GPTQ to 2 bits: how much of what all channels win does a share of them win?

Command: python -m lowbit quantize assets/quickstart/model --method gptq --grid paretoq --bits 2
    --data assets/quickstart/text/train.jsonl --length 256 -o runs/quickstart_gptq_w2
    python -m lowbit sweep configs/sweeps/efqat.py -o runs/study_efqat
Hardware: 2 CPU cores.
Time: 8 minutes for all 9 points beside other work.
Expected: nats/token above float: scales alone 0.78, a twentieth of the channels 0.80, a quarter 0.71 (over the network
    0.75, whole matrices 0.78), half 0.66, all 0.63: experiments/2026-11-23_efqat.
Record: python scripts/make_study_record.py configs/sweeps/efqat.py runs/study_efqat
"""

from lowbit.sweep import Sweep

EMBEDDING_AND_NORMS_STAY = ("optimizer.frozen=params/(?!layers/.*_proj/).*", "optimizer.channel_every_steps=20")
ROUNDED = {"model.source": "runs/quickstart_gptq_w2", "model.source_scales": True}


def get_sweep() -> Sweep:
    points = [
        ROUNDED | {"quant.codes": "fixed"},
        ROUNDED | {"optimizer.channel_share": 0.05},
        ROUNDED | {"optimizer.channel_share": 0.1},
        ROUNDED | {"optimizer.channel_share": 0.25},
        ROUNDED | {"optimizer.channel_share": 0.25, "optimizer.channel_choice": "network"},
        ROUNDED | {"optimizer.channel_share": 0.25, "optimizer.channel_choice": "layer"},
        ROUNDED | {"optimizer.channel_share": 0.5},
        ROUNDED | {"optimizer.channel_share": 1.0},
        {"quant.method": "float", "optimizer.learning_rate": 1.5e-4},
    ]
    # Each a run of its own: their optimizers differ.
    return Sweep("configs/qat_quickstart.py:bits=2", points, EMBEDDING_AND_NORMS_STAY, points_at_once=0)
