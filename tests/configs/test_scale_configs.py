"""The configs by which scales alone learn: what stays, and where they start."""

from pathlib import Path

import pytest

from lowbit.config import load
from lowbit.errors import ConfigError
from lowbit.train.quantization import quantization_rules
from lowbit.tree import lookup

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_efficientqat_goes_on_from_block_ap(bits):
    config = load(f"{CONFIGS}/efficientqat_smollm2.py:bits={bits},distill=0.5")
    assert (config.model.source, config.model.source_scales) == (f"runs/smollm2_block_ap_w{bits}", True)
    assert config.optimizer.frozen == ("params/.*", "quant/.*/zero")
    quantizer = lookup(quantization_rules(config.quant), "layers/mlp/up_proj/kernel")
    assert (quantizer.name, quantizer.granularity, quantizer.fixed) == (f"rtn{bits}_minmax_fixed", 64, True)
    assert config.distill.weight == 0.5


def test_peqa_starts_from_rounding_and_zero_points_learn_only_if_asked():
    config = load(f"{CONFIGS}/peqa_smollm2.py:bits=3,group=0,zeros")
    assert (config.model.source_scales, config.quant.codes, config.quant.symmetric) == (False, "fixed", False)
    assert (config.quant.granularity, config.optimizer.frozen) == ("channel", ("params/.*",))
    assert load(f"{CONFIGS}/peqa_smollm2.py").optimizer.frozen == ("params/.*", "quant/.*/zero")
    with pytest.raises(ConfigError, match="no recipe for bits 5"):
        load(f"{CONFIGS}/peqa_smollm2.py:bits=5")
