"""SmolLM2-135M to signs and two vectors of values a matrix, learned from the float model.

Paper: OneBit, arXiv 2402.11295: its start, gradient and losses. The budget is this repository's, far smaller.
Command: python -m lowbit train configs/onebit_smollm2.py --config.run_folder=runs/onebit
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=train.npy --config.data.valid=val.npy
Hardware: one H100 with 80 GB.
Time: a minute of training (166,000 tokens/s; with LayerNorms 134,000).
Expected: on held-out text of the training tokens' sources, and on WikiText-2 valid, nats/token over 128 windows each:
    3.87 / 4.65; losses=paper 3.95 / 4.63; recipe=paper 4.80 / 5.94. ParetoQ at 1 bit, with losses=paper and on the same
    tokens, has 4.03 / 4.77, with losses=mixed 3.97 / 4.82; rate=0.004 has 3.86 / 4.63, rate=0.001 4.01 / 4.84.
    Records: experiments/2026-11-22_smollm2_onebit, _hidden_states, and
    experiments/2026-11-24_smollm2_onebit_rates_starts_losses.
Variants: recipe=best|paper, where paper is the reference: latent weights of one magnitude, a LayerNorm behind every
    linear layer, divergence and hidden states without cross entropy, AdamW with its betas and weight decay;
    start=mse|svd|nmf|mean; losses=mixed|paper|forward|reverse|confidence; norm and latent switch on those parts alone;
    method=onebit|paretoq, where paretoq is 1 bit with one scale an output; rate, a learning rate in place of the
    recipe's; smoke trains two steps of a tiny model from scratch, which has no teacher.
    configs/sweeps/onebit_start.py, onebit_losses.py and onebit_rates.py compare them at equal tokens.
"""

from typing import NamedTuple

from lowbit.config import ConfigDict, base, choose, shrink, variants


class Losses(NamedTuple):
    """The section `distill`.

    Attributes:
      weight: share of the divergence.
      divergence: which.
      hidden_weight: of the distance between hidden states.
    """

    weight: float
    divergence: str = "forward"
    hidden_weight: float = 0.0


# The reference adds 0.01 times the divergence summed over the 2,048 tokens of a sequence to the hidden states'
# distance, and the divergence here is a mean over tokens: the same ratio is 1 to 1 / 20.48.
LOSSES = {
    "mixed": Losses(0.7, hidden_weight=0.05),
    "paper": Losses(1.0, hidden_weight=1 / 20.48),
    "forward": Losses(1.0),
    "reverse": Losses(1.0, "reverse"),
    "confidence": Losses(1.0, "confidence"),
}
METHODS = {"onebit": None, "paretoq": None}
RECIPES = {"best": None, "paper": None}
PAPER_RATE, BEST_RATE = 4e-4, 2e-3  # the paper's range is 1e-4 to 4e-4


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(
        arg,
        recipe="best",
        method="onebit",
        start="mse",
        losses="",
        norm=False,
        latent=False,
        rate=0.0,
        smoke=False,
    )
    choose("recipe", variant.recipe, RECIPES)
    choose("method", variant.method, METHODS)
    of_paper = variant.recipe == "paper"
    losses = choose("losses", variant.losses or ("paper" if of_paper else "mixed"), LOSSES)
    config = base()
    config.run_folder = f"runs/smollm2_{variant.method}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.linear_norm = of_paper or variant.norm
    config.model.architecture.vocab_size = 49_152

    config.quant.method = variant.method
    config.quant.bits = 1.0
    config.quant.scale_init = variant.start
    config.quant.latent = 0.01 if of_paper or variant.latent else 0.0
    config.distill.weight = losses.weight
    config.distill.divergence = losses.divergence
    config.distill.hidden_weight = losses.hidden_weight

    config.optimizer.learning_rate = variant.rate or (PAPER_RATE if of_paper else BEST_RATE)
    if of_paper:
        config.optimizer.b2 = 0.98
        config.optimizer.weight_decay = 0.01
    config.train.tokens = 10_000_000
    config.train.batch_size = 8
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    return shrink(config) if variant.smoke else config
