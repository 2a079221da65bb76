"""The shipped 3 M-parameter Llama to 1, 1.58, 2, 3 or 4 bits, on a laptop's two cores.

Paper: ParetoQ, arXiv 2502.02631.
Command: python -m lowbit train configs/qat_quickstart.py:bits=2 --config.run_folder=runs/quickstart_w2
Hardware: 2 CPU cores.
Time: 35 seconds a width.
Expected: nats/token on the shipped held-out text, where the float model has 3.43: 3.52 at 4 bits, 3.69 at 3, 4.09 at 2,
    4.40 at 1.58, 4.89 at 1.
Variants: bits=1|1.58|2|3|4; smoke trains two steps of a tiny model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

# The best of a few tried at each width with this budget: 1 bit 1e-3 (2e-3: +0.02 nats), 1.58 bit 5e-4 (1e-3: +0.01),
# 2 bit 5e-4 (3e-4: +0.01, 1e-3: +0.06).
LEARNING_RATES = {1.0: 1e-3, 1.58: 5e-4, 2.0: 5e-4, 3.0: 3e-4, 4.0: 1.5e-4}


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=2.0, smoke=False)
    config = base()
    config.run_folder = f"runs/quickstart_w{variant.bits:g}"
    config.model.source = "assets/quickstart/model"
    config.model.tokenizer = "assets/quickstart/model"
    config.model.compute_dtype = "float32"  # what CPUs are fast at
    config.model.remat = "full"  # on a CPU, moving activations costs more time than computing them again
    config.data.train = ("assets/quickstart/text/train.jsonl",)
    config.data.valid = ("assets/quickstart/text/valid.jsonl",)

    config.quant.method = "paretoq"
    config.quant.bits = variant.bits
    config.optimizer.learning_rate = choose("recipe for bits", variant.bits, LEARNING_RATES)

    config.train.tokens = 150_000
    config.train.batch_size = 16
    config.train.sequence_length = 128  # attention in XLA on a CPU is slow at longer ones
    config.train.loss_chunks = 1
    config.evaluation.windows = 128
    config.evaluation.batch_size = 16
    config.checkpoint.keep = 1
    return shrink(config) if variant.smoke else config
