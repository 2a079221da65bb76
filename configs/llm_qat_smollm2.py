"""SmolLM2-135M with rounded weights, activations and key-value cache (W-A-KV), learned from the float model.

Paper: LLM-QAT, arXiv 2305.17888: dynamic ranges, activations by token, keys and values rounded in training, the
    divergence from the float model as loss. Learning rate, mixed loss and batch are this repository's, for a budget a
    thousand times smaller; recipe=paper has the paper's.
Command: python -m lowbit train configs/llm_qat_smollm2.py:setting=4-8-4 --config.run_folder=runs/w4a8kv4
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy --config.data.valid=val.npy
    What plain rounding makes of the same setting:
    python -m lowbit eval SmolLM2-135M-Instruct.Q4_1.gguf --method rtn --bits 4 --activations int8-dynamic
    --kv-bits 4-minmax --data val.npy
Hardware: one H100 with 80 GB.
Time: 4-8-4 in 56 seconds of training (178,500 tokens/s, with a teacher).
Expected: 4-8-4 on held-out text of the training tokens' sources, and on WikiText-2 valid, nats/token over 128 windows
    each: 3.19 / 3.19; plain rounding 4.63 / 4.66; 4-16-16 with this recipe 3.14 / 3.13, 4-8-8 3.15 / 3.15, 8-8-8
    3.09 / 3.04, and 4-8-4 with recipe=paper 3.61 / 3.61. Records: experiments/2026-11-22_smollm2_llm_qat, _widths.
Variants: setting=W-A-KV, such as 8-8-8, 4-8-8, 4-8-4, 4-4-4, with 16 for what is not rounded; grid=paretoq|llmqat,
    learned scales or max|w| at every step; recipe=best|paper, where paper is the reference: the divergence alone, the
    grid llmqat, the reference code's rounding of activations, and keys before their rotation with one scale a token;
    kv=minmax|symmetric (the paper's), of keys and values: a zero point takes two bytes more a token and head, and uses
    all 16 levels where numbers are not centred;
    down=8|16, another width of the inputs of the MLP's second matrix, which have outliers; smoke trains two steps of a
    tiny model from scratch, which has no teacher.
"""

import re

from lowbit.config import ConfigDict, base, choose, shrink, variants
from lowbit.errors import ConfigError

RECIPES = {"best": None, "paper": None}
CACHES = {"minmax": None, "symmetric": None}
GRIDS = {"paretoq": None, "llmqat": None}
PAPER_RATE, BEST_RATE = 2e-5, 2e-4


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, setting="4-8-4", grid="", recipe="best", kv="", down=0, smoke=False)
    choose("recipe", variant.recipe, RECIPES)
    of_paper = variant.recipe == "paper"
    weights, inputs, cached = widths(variant.setting)
    # ParetoQ has no 8-bit grid, whose scales need no learning either.
    grid = variant.grid or ("llmqat" if of_paper or weights == 8 else "paretoq")
    choose("grid", grid, GRIDS)
    config = base()
    config.run_folder = f"runs/smollm2_w{weights}a{inputs}kv{cached}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "float" if weights == 16 else grid
    config.quant.bits = float(weights)
    config.activations.bits = inputs
    config.activations.kv_bits = cached
    kv = variant.kv or ("symmetric" if of_paper else "minmax")
    choose("kv", kv, CACHES)
    config.activations.kv_symmetric = kv == "symmetric"
    if variant.down:
        config.activations.overrides = (("layers/mlp/down_proj", {"bits": variant.down}),)
    if of_paper:
        config.quant.variant = "reference" if config.quant.method == "llmqat" else "fixed"
        config.activations.variant = "reference"
        config.activations.kv_rotated = False
        config.activations.kv_per_head = False

    config.distill.weight = 1.0 if of_paper else 0.5
    config.optimizer.learning_rate = PAPER_RATE if of_paper else BEST_RATE
    config.train.tokens = 10_000_000
    config.train.batch_size = 16
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    return shrink(config) if variant.smoke else config


def widths(setting: str) -> tuple[int, int, int]:
    """Returns the bits of weights, activations and cache; raises ConfigError for a setting of another form."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)", setting)
    if found is None:
        raise ConfigError(f"setting {setting!r} is not of the form W-A-KV", "give three widths, such as 4-8-4")
    weights, inputs, cached = map(int, found.groups())
    return weights, inputs, cached
