"""SmolLM2-135M, rounded to 2, 3 or 4 bits, then a share of each matrix's output channels learns, and all scales.

Paper: EfQAT, arXiv 2411.11038: from a model quantized without training, channels of largest mean |w| learn, 5 to 25 %
    of them, chosen anew every so many samples, in each matrix (CWPL), over the network (CWPN) or as whole matrices
    (LWPN). Learning rates and budget are this repository's.
Command: python -m lowbit quantize SmolLM2-135M-Instruct.Q4_1.gguf --method gptq --grid paretoq --bits 4
    --data train.npy -o runs/smollm2_gptq_w4
    python -m lowbit train configs/efqat_smollm2.py:bits=4 --config.run_folder=runs/smollm2_efqat_w4
    --config.data.train=train.npy --config.data.valid=val.npy
Hardware: one H100 with 80 GB.
Time: not measured yet; a step of the plain recipe takes as long.
Expected: not measured yet; on the quickstart's model, docs/finetuning.md.
Variants: bits=2|3|4; share=X, of the output channels, above 0, to 1; choice=matrix|network|layer; smoke trains two
    steps of a tiny model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

LEARNING_RATES = {2.0: 5e-4, 3.0: 3e-4, 4.0: 1.5e-4}
"""By width: those of the quickstart's model, all of whose channels learn."""


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=4.0, share=0.25, choice="matrix", smoke=False)
    config = base()
    config.run_folder = f"runs/smollm2_efqat_w{variant.bits:g}"
    config.model.source = f"runs/smollm2_gptq_w{variant.bits:g}"
    config.model.source_scales = True
    config.model.architecture.vocab_size = 49_152

    config.quant.method = "paretoq"
    config.quant.bits = variant.bits

    config.optimizer.channel_share = variant.share
    config.optimizer.channel_choice = variant.choice
    config.optimizer.frozen = ("params/(?!layers/.*_proj/).*",)  # embedding, head and norms stay
    config.optimizer.learning_rate = choose("recipe for bits", variant.bits, LEARNING_RATES)
    config.schedule.shape, config.schedule.warmup = "cosine", 0.05

    config.train.batch_size = 16
    config.train.tokens = 10_000_000
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    return shrink(config) if variant.smoke else config
