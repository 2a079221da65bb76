"""SmolLM2-135M to 1, 1.58, 2, 3 or 4 bits by quantization-aware fine-tuning.

Paper: ParetoQ, arXiv 2502.02631: its grids and gradients. Learning rate, scale start and warm-up are this
    repository's, for a budget a thousand times smaller than the paper's.
Command: python -m lowbit train configs/qat_smollm2.py:bits=2 --config.run_folder=runs/smollm2_w2
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy --config.data.valid=val.npy
    (the hub's HuggingFaceTB/SmolLM2-135M is the default source; texts are taken in place of .npy tokens)
Hardware: one H100 with 80 GB; 32 sequences of 1,024 tokens a step.
Time: 50 seconds at 286,000 tokens/s, compilation and loading included (batch 64: 302,000 tokens/s).
Expected: on held-out text of the training tokens' sources, and on WikiText-2 valid, nats/token over 128 windows each:
    4 bits 3.11 / 3.23, 3 bits 3.23 / 3.68, 2 bits 3.63 / 4.43, 1.58 bits 3.83 / 4.76, 1 bit 5.25 / 6.70. The float
    model (the Q4_1 file) starts at 3.30 / 3.16; fine-tuned on the same tokens it has 3.05 / 3.01.
    Record: experiments/2026-11-22_smollm2_qat.
Variants: bits=1|1.58|2|3|4; smoke trains two steps of a tiny model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

# The best of those tried at each width: the coarser the grid, the further weights have to move.
LEARNING_RATES = {1.0: 2e-3, 1.58: 2e-3, 2.0: 2e-3, 3.0: 1e-3, 4.0: 3e-4}


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=2.0, smoke=False)
    config = base()
    config.run_folder = f"runs/smollm2_w{variant.bits:g}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "paretoq"
    config.quant.bits = variant.bits
    config.quant.scale_init = "mse"

    config.optimizer.learning_rate = choose("recipe for bits", variant.bits, LEARNING_RATES)
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.schedule.shape, config.schedule.warmup, config.schedule.final = "cosine", 0.05, 0.0

    config.train.tokens = 10_000_000
    config.train.batch_size = 32
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    return shrink(config) if variant.smoke else config
