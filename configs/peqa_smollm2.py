"""SmolLM2-135M, rounded to 4, 3 or 2 bits, learns a task by its scales alone: codes stay, and tasks swap scales.

Paper: PEQA, arXiv 2305.14152: min-max rounding, then codes and zero points stay and scales learn. Learning rate and
    budget are this repository's.
Command: python -m lowbit train configs/peqa_smollm2.py:bits=4 --config.run_folder=runs/smollm2_peqa_w4
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=task.npy --config.data.valid=val.npy
    (the hub's HuggingFaceTB/SmolLM2-135M is the default source; texts are taken in place of .npy tokens)
    From what another method rounded to the same grid, or an earlier run:
    python -m lowbit quantize SmolLM2-135M-Instruct.Q4_1.gguf --method gptq --grid zero_point --bits 4 --granularity 64
    --data train.npy -o runs/gptq_w4
    python -m lowbit train configs/peqa_smollm2.py:bits=4 --config.run_folder=runs/smollm2_peqa_gptq_w4
    --config.model.source=runs/gptq_w4 --config.model.source_scales=true --config.data.train=task.npy
Hardware: one H100 with 80 GB.
Time: 45 seconds for 10 M tokens.
Expected: from rounding 3.175 / 3.076 nats/token at 4 bits, 4.570 / 4.875 at 2 (val / WikiText-2 valid):
    experiments/2026-11-22_smollm2_finetuning_{4,2}_bits. 3 bits: on the quickstart's model, docs/finetuning.md.
Variants: bits=2|3|4; group=64|N, inputs a scale, 0 for one scale an output channel; zeros=true lets zero points learn
    as well; smoke trains two steps of a tiny model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

LEARNING_RATES = {2.0: 3e-4, 3.0: 1e-4, 4.0: 5e-5}
"""Of scales, by width: the coarser the grid, the further they go. At 3 bits tried on the quickstart's model."""

SMOKE_GROUP = 16


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=4.0, group=64, zeros=False, smoke=False)
    config = base()
    config.run_folder = f"runs/smollm2_peqa_w{variant.bits:g}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "rtn"
    config.quant.symmetric = False
    config.quant.bits = variant.bits
    config.quant.granularity = variant.group or "channel"
    config.quant.codes = "fixed"

    config.optimizer.frozen = ("params/.*",) if variant.zeros else ("params/.*", "quant/.*/zero")
    config.optimizer.learning_rate = choose("recipe for bits", variant.bits, LEARNING_RATES)
    config.schedule.shape, config.schedule.warmup = "cosine", 0.05

    config.train.batch_size = 16
    config.train.tokens = 10_000_000
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    if variant.smoke:
        config.quant.granularity = SMOKE_GROUP if variant.group else "channel"
        return shrink(config)
    return config
