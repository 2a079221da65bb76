"""SmolLM2-135M at 4 bits (NF4), 3 or 2, learns a task by low-rank factors beside codes that stay.

Paper: QLoRA, arXiv 2305.14314: NormalFloat in groups of 64, adapters on all linear layers, a constant learning rate and
    gradients clipped to 0.3. Its rank of 64 is for matrices of 4,096 and more. In one of 576 by 576 it would cost 3.6
    bits a weight, so it is 16, as alpha is. Scales are float16, 0.25 bits a weight; `double` quantizes them once more,
    as the paper does: 0.127.
Command: python -m lowbit train configs/qlora_smollm2.py:bits=4 --config.run_folder=runs/smollm2_qlora_w4
    --config.model.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.train=task.npy --config.data.valid=val.npy
    (the hub's HuggingFaceTB/SmolLM2-135M is the default source; texts are taken in place of .npy tokens)
    Beside codes that another method rounded:
    python -m lowbit quantize SmolLM2-135M-Instruct.Q4_1.gguf --method gptq --grid zero_point --bits 4 --granularity 64
    --data train.npy -o runs/gptq_w4
    python -m lowbit train configs/qlora_smollm2.py:bits=4,grid=zero_point --config.model.source=runs/gptq_w4
    --config.model.source_scales=true --config.run_folder=runs/smollm2_qlora_gptq_w4 --config.data.train=task.npy
Hardware: one H100 with 80 GB.
Time: 58 seconds for 10 M tokens.
Expected: 3.154 / 3.076 nats/token at 4 bits (NF4), 4.399 / 4.850 at 2 (val / WikiText-2 valid):
    experiments/2026-11-22_smollm2_finetuning_{4,2}_bits. 3 bits: on the quickstart's model, docs/finetuning.md.
Variants: bits=2|3|4; grid=nf4|paretoq|zero_point, by default NF4 at 4 bits and ParetoQ's at 2 and 3; rank=16|N;
    double quantizes scales too; smoke trains two steps of a tiny model from scratch.
"""

from lowbit.config import ConfigDict, base, choose, shrink, variants

METHODS = {"nf4": "nf4", "paretoq": "paretoq", "zero_point": "rtn"}
"""By grid. That of zero points rounds from minimum to maximum, unless the codes are another run's."""

GRIDS = {2.0: "paretoq", 3.0: "paretoq", 4.0: "nf4"}
"""By width. NormalFloat has 16 levels."""

LEARNING_RATE = 2e-4
"""The paper's for models of up to 13 B weights. The quickstart's, of 3 M and in 48 steps, wants 5e-4 to 2e-3."""

SMOKE_GROUP, SMOKE_RANK = 16, 4


def get_config(arg: str = "") -> ConfigDict:
    variant = variants(arg, bits=4.0, grid="", rank=16, double=False, smoke=False)
    usual = choose("recipe for bits", variant.bits, GRIDS)
    method = choose("grid", variant.grid or usual, METHODS)
    if method == "nf4":
        choose("NormalFloat of bits", variant.bits, {4.0: method})
    config = base()
    config.run_folder = f"runs/smollm2_qlora_w{variant.bits:g}"
    config.model.source = "HuggingFaceTB/SmolLM2-135M"
    config.model.architecture.vocab_size = 49_152

    config.quant.method = method
    config.quant.symmetric = method != "rtn"
    config.quant.bits = variant.bits
    config.quant.granularity = 64
    config.quant.double_quant = variant.double
    config.adapters.rank = variant.rank
    config.adapters.alpha = 16.0

    config.optimizer.frozen = ("params/.*",)
    config.optimizer.learning_rate = LEARNING_RATE
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 0.3
    config.schedule.shape, config.schedule.warmup = "constant", 0.03

    config.train.batch_size = 16
    config.train.tokens = 10_000_000
    config.train.sequence_length = 1024
    config.evaluation.windows = 128
    if variant.smoke:
        config.quant.granularity, config.adapters.rank = SMOKE_GROUP, SMOKE_RANK
        return shrink(config)
    return config
