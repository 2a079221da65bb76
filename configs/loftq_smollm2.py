"""SmolLM2-135M at 4, 3 or 2 bits learns by low-rank factors that begin with what rounding loses.

Paper: LoftQ, arXiv 2310.08659: weights are rounded and what is lost taken apart, 5 times in turn, so that codes and
    factors start near the float weights; then as QLoRA. In the place of its NormalFloat of 2 bits stands ParetoQ's
    grid, with scales of least squared error: min-max rounding starts 0.9 nats/token further off on the quickstart's
    model.
Command: python -m lowbit train configs/loftq_smollm2.py:bits=2 --config.run_folder=runs/smollm2_loftq_w2
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=task.npy --config.data.valid=val.npy
    (the hub's HuggingFaceTB/SmolLM2-135M is the default source; texts are taken in place of .npy tokens)
Hardware: one H100 with 80 GB.
Time: 47 seconds for 10 M tokens.
Expected: 3.155 / 3.066 nats/token at 4 bits (NF4), 3.721 / 3.767 at 2 (val / WikiText-2 valid):
    experiments/2026-11-22_smollm2_finetuning_{4,2}_bits. 3 bits: on the quickstart's model, docs/finetuning.md.
Variants: bits=2|3|4, NF4 at 4 and ParetoQ's grid at 2 and 3; rank=16|N; rounds=5|N; smoke trains two steps of a tiny
    model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

LEARNING_RATES = {2.0: 3e-4, 3.0: 3e-4, 4.0: 2e-4}
"""By width, within the paper's 1e-4 to 4e-4. The quickstart's model, in 48 steps, wants 5e-4 to 2e-3."""

SMOKE_GROUP, SMOKE_RANK = 16, 4


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=4.0, rank=16, rounds=5, smoke=False)
    config = base()
    config.run_folder = f"runs/smollm2_loftq_w{variant.bits:g}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "nf4" if variant.bits == 4.0 else "paretoq"
    config.quant.bits = variant.bits
    config.quant.granularity = 64
    config.adapters.update({"rank": variant.rank, "alpha": 16.0, "start": "loftq", "rounds": variant.rounds})

    config.optimizer.frozen = ("params/.*",)
    config.optimizer.learning_rate = choose("recipe for bits", variant.bits, LEARNING_RATES)
    config.schedule.shape, config.schedule.warmup = "cosine", 0.03

    config.train.batch_size = 16
    config.train.tokens = 10_000_000
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    if variant.smoke:
        config.quant.granularity, config.adapters.rank = SMOKE_GROUP, SMOKE_RANK
        return shrink(config)
    return config
