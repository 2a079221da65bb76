"""SmolLM2-135M to 1, 1.58, 2, 3 or 4 bits by quantization-aware fine-tuning.

Paper: ParetoQ, arXiv 2502.02631: its grids and gradients. Learning rate, scale start and warm-up are this
    repository's, for a budget a thousand times smaller than the paper's.
Command: python -m lowbit train configs/qat_smollm2.py:bits=2 --config.run_folder=runs/smollm2_w2
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy --config.data.valid=val.npy
    (the hub's HuggingFaceTB/SmolLM2-135M is the default source; texts are taken in place of .npy tokens)
Hardware: one H100 with 80 GB.
Time: 50 to 65 seconds of training (168,000 to 202,000 tokens/s, with a teacher).
Expected: on held-out text of the training tokens' sources, and on WikiText-2 valid, nats/token over 128 windows each:
    4 bits 3.10 / 3.14, 3 bits 3.22 / 3.34, 2 bits 3.44 / 3.80, 1.58 bits 3.56 / 4.12, 1 bit 4.03 / 4.77. The float
    model (the Q4_1 file) starts at 3.30 / 3.16; fine-tuned on the same tokens it has 3.04 / 3.05. recipe=plain: 4 bits
    3.11 / 3.23, 3 bits 3.23 / 3.68, 2 bits 3.63 / 4.43, 1.58 bits 3.83 / 4.76, 1 bit 5.25 / 6.70. With 100 M tokens:
    4 bits 2.96 / 3.13, 3 bits 3.06 / 3.25, 2 bits 3.23 / 3.55, 1.58 bits 3.28 / 3.69, 1 bit 3.59 / 4.11, float
    2.95 / 3.17, in 8 minutes each (batches of 32; settings in experiments/2026-11-22_smollm2_100m_tokens).
    recipe=tuned: 4 bits 3.08 / 3.17 (experiments/2026-11-22_smollm2_tuned_teacher).
    Records: experiments/2026-11-22_smollm2_hidden_states (1, 1.58 and 2 bits), _starts_and_rates (4 bits), _recipe
    (3 bits) and _qat (plain).
Variants: bits=1|1.58|2|3|4; recipe=best|logits|plain|tuned, where logits has no hidden states in its loss (2 bits
    3.48 / 3.94, 1 bit 4.13 / 5.11), plain is cross entropy alone in batches of 32 at every width, and tuned, for 4
    bits, learns from the float model after it was tuned on the same tokens, which takes a run of a minute first:
    bits=4,recipe=plain --config.quant.method=float --config.train.batch_size=16 --config.optimizer.learning_rate=1e-4
    --config.run_folder=runs/smollm2_float; smoke trains two steps of a tiny model from scratch, which has no teacher.
"""

from typing import NamedTuple

from lowbit.config import ConfigDict, base, choose, shrink, variants


class Recipe(NamedTuple):
    """What differs from width to width.

    Attributes:
      learning_rate: the peak.
      batch_size: sequences of 1,024 tokens a step.
      distill_weight: share of the divergence from the float model in the loss.
      hidden_weight: of the distance from its hidden states.
      float_learning_rate: factor on the rate, for embedding and norms.
    """

    learning_rate: float
    batch_size: int = 32
    distill_weight: float = 0.0
    hidden_weight: float = 0.0
    float_learning_rate: float = 1.0


# The coarser the grid, the further weights have to move: higher rates, more and smaller steps, and more of the teacher.
RECIPES = {
    "best": {
        1.0: Recipe(2e-3, batch_size=8, distill_weight=1.0, hidden_weight=0.05),
        1.58: Recipe(1.4e-3, batch_size=8, distill_weight=0.7, hidden_weight=0.05),
        2.0: Recipe(1e-3, batch_size=8, distill_weight=0.7, hidden_weight=0.2),
        3.0: Recipe(7e-4, batch_size=16, distill_weight=0.5),
        4.0: Recipe(5e-4, batch_size=16, distill_weight=0.2, float_learning_rate=0.2),
    },
    # The best without hidden states, which a cache of the teacher does not hold.
    "logits": {
        1.0: Recipe(2e-3, batch_size=8, distill_weight=0.7),
        1.58: Recipe(1.4e-3, batch_size=16, distill_weight=0.5),
        2.0: Recipe(1.4e-3, batch_size=16, distill_weight=0.5),
        3.0: Recipe(7e-4, batch_size=16, distill_weight=0.5),
        4.0: Recipe(2e-4, batch_size=16, distill_weight=0.5),
    },
    "tuned": {4.0: Recipe(5e-4, batch_size=16, distill_weight=0.8, float_learning_rate=0.3)},
    "plain": {1.0: Recipe(2e-3), 1.58: Recipe(2e-3), 2.0: Recipe(2e-3), 3.0: Recipe(1e-3), 4.0: Recipe(3e-4)},
}


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=2.0, recipe="best", smoke=False)
    recipe = choose("recipe for bits", variant.bits, choose("recipe", variant.recipe, RECIPES))
    config = base()
    config.run_folder = f"runs/smollm2_w{variant.bits:g}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "paretoq"
    config.quant.bits = variant.bits
    config.quant.scale_init = "mse"

    config.distill.weight = recipe.distill_weight
    config.distill.hidden_weight = recipe.hidden_weight
    config.distill.teacher = "runs/smollm2_float" if variant.recipe == "tuned" else ""
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.float_learning_rate = recipe.float_learning_rate
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.schedule.shape, config.schedule.warmup, config.schedule.final = "cosine", 0.05, 0.0

    config.train.batch_size = recipe.batch_size
    config.train.tokens = 10_000_000
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    return shrink(config) if variant.smoke else config
