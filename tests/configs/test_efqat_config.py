"""The config by which a share of the channels learns: where it starts, what stays."""

from pathlib import Path

import pytest

from lowbit.config import load
from lowbit.errors import ConfigError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.train.learner import make_learner, make_plan

CONFIG = f"{Path(__file__).parents[2]}/configs/efqat_smollm2.py"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_efqat_goes_on_from_a_model_that_was_rounded(bits):
    config = load(f"{CONFIG}:bits={bits},share=0.1,choice=network")
    assert (config.model.source, config.model.source_scales) == (f"runs/smollm2_gptq_w{bits}", True)
    assert (config.quant.method, config.quant.codes, config.quant.bits) == ("paretoq", "moving", bits)
    assert (config.optimizer.channel_share, config.optimizer.channel_choice) == (0.1, "network")
    with pytest.raises(ConfigError, match="no recipe for bits 5"):
        load(f"{CONFIG}:bits=5")


def test_embedding_and_norms_stay_and_kernels_and_scales_do_not():
    cfg = LlamaConfig(16, 8, 16, 1, num_heads=2, num_kv_heads=1, head_dim=4, tie_embeddings=True, qkv_bias=False)
    config = load(CONFIG)
    learner = make_learner(config, cfg, make_plan(config))
    kernels = {path for path in param_shapes(cfg) if path.endswith("_proj/kernel")}
    assert len(kernels) == 7
    assert learner.frozen == {f"params/{path}" for path in param_shapes(cfg)} - {f"params/{path}" for path in kernels}
