"""SmolLM2-135M to 2, 3 or 4 bits in two phases: layer after layer everything learns, then scales, end to end.

Paper: EfficientQAT, arXiv 2407.11062: Block-AP, which is `quantize --method block_ap`, then E2E-QP, which is this
    config: codes and zero points stay, scales learn from the loss of language modelling. The paper has 4,096 sequences
    of 2,048 tokens in the first phase and of 4,096 in the second, at 2e-5 (2 bits) and 1e-5; rates and budget are this
    repository's here.
Command: python -m lowbit quantize SmolLM2-135M-Instruct.Q4_1.gguf --method block_ap --bits 2 --granularity 64
    --data train.npy --sequences 256 --length 1024 --batch-size 4 --epochs 4 --weight-rate 3e-4 --scale-rate 3e-4
    -o runs/smollm2_block_ap_w2
    python -m lowbit train configs/efficientqat_smollm2.py:bits=2 --config.run_folder=runs/smollm2_efficientqat_w2
    --config.model.source=runs/smollm2_block_ap_w2 --config.data.train=train.npy --config.data.valid=val.npy
Hardware: one H100 with 80 GB.
Time: 54 seconds for the first phase, 41 for the second, of 10 M tokens.
Expected: 3.765 / 3.986 nats/token at 2 bits (val / WikiText-2 valid): experiments/2026-11-22_smollm2_efficientqat.
Variants: bits=2|3|4; group=64|N, inputs a scale, as the first phase had it; distill=X, 0 to 1, share of the divergence
    from the float model in the loss (the paper: 0); smoke trains two steps of a tiny model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

LEARNING_RATES = {2.0: 3e-4, 3.0: 1e-4, 4.0: 5e-5}
"""Of scales, by width. At 2 bits tried on the quickstart's model."""

SMOKE_GROUP = 16


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=2.0, group=64, distill=0.0, smoke=False)
    config = base()
    config.run_folder = f"runs/smollm2_efficientqat_w{variant.bits:g}"
    config.model.source = f"runs/smollm2_block_ap_w{variant.bits:g}"
    config.model.source_scales = True
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "rtn"
    config.quant.symmetric = False
    config.quant.bits = variant.bits
    config.quant.granularity = variant.group
    config.quant.codes = "fixed"

    config.distill.weight = variant.distill
    config.optimizer.frozen = ("params/.*", "quant/.*/zero")
    config.optimizer.learning_rate = choose("recipe for bits", variant.bits, LEARNING_RATES)
    config.schedule.shape, config.schedule.warmup = "cosine", 0.05

    config.train.batch_size = 16
    config.train.tokens = 10_000_000
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    if variant.smoke:
        config.quant.granularity = SMOKE_GROUP
        return shrink(config)
    return config
