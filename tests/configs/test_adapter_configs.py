"""The configs of QLoRA and LoftQ: grids, factors and what learns, by width."""

from pathlib import Path

import pytest

from lowbit.config import load
from lowbit.errors import ConfigError
from lowbit.train.adapters import model_rules
from lowbit.tree import lookup

CONFIGS = Path(__file__).parents[2] / "configs"
KERNEL = "layers/mlp/up_proj/kernel"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("qlora_smollm2.py", "nf4_zero16"),
        ("qlora_smollm2.py:bits=4,grid=zero_point", "rtn4_minmax_zero16"),
        ("qlora_smollm2.py:bits=2,rank=8", "paretoq2_zero8"),
        ("qlora_smollm2.py:double", "nf4_doubled_zero16"),
        ("loftq_smollm2.py", "nf4_loftq16"),
        ("loftq_smollm2.py:bits=3,rounds=1", "paretoq3_loftq16"),
    ],
)
def test_codes_stay_and_factors_alone_learn(spec, name):
    config = load(f"{CONFIGS}/{spec}")
    quantizer = lookup(model_rules(config), KERNEL)
    assert (quantizer.name, quantizer.granularity, quantizer.fixed) == (name, 64, True)
    assert config.optimizer.frozen == ("params/.*",)


def test_what_has_no_recipe_is_refused():
    with pytest.raises(ConfigError, match="no recipe for bits 5"):
        load(f"{CONFIGS}/loftq_smollm2.py:bits=5")
    with pytest.raises(ConfigError, match="no NormalFloat of bits 2"):
        load(f"{CONFIGS}/qlora_smollm2.py:bits=2,grid=nf4")
    with pytest.raises(ConfigError, match="no grid 'int4'"):
        load(f"{CONFIGS}/qlora_smollm2.py:grid=int4")
