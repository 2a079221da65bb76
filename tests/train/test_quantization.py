"""From `config.quant` to rules."""

import pytest

from lowbit.config import base, override
from lowbit.errors import ConfigError, QuantizerError
from lowbit.train.quantization import quantization_rules
from lowbit.tree import lookup

KERNEL = "layers/mlp/up_proj/kernel"


def names(*overrides, extra=()):
    config = base()
    override(config, overrides)
    config.quant.overrides = tuple(extra)
    rules = quantization_rules(config.quant)
    paths = (KERNEL, "layers/attn/q_proj/kernel", "layers/attn/q_proj/bias", "embed/embedding", "norm/scale")
    return [lookup(rules, path).name for path in paths]


@pytest.mark.parametrize(
    ("overrides", "kernels"),
    [
        ((), "paretoq2"),
        (("quant.bits=1.58",), "paretoq1.58"),
        (("quant.method=rtn", "quant.bits=3", "quant.granularity=16"), "rtn3"),
        (("quant.method=llmqat", "quant.bits=4"), "llmqat4"),
        (("quant.method=absmean_ternary",), "absmean_ternary"),
        (("quant.method=float",), "float16"),
    ],
)
def test_kernels_are_quantized_and_the_rest_stays_float(overrides, kernels):
    assert names(*overrides) == [kernels, kernels, "float16", "float16", "float16"]


def test_overrides_come_first_and_inherit_what_they_do_not_name():
    got = names("quant.method=rtn", extra=[("layers/mlp/.*", {"bits": 4.0}), ("embed/.*", {"method": "float"})])
    assert got == ["rtn4", "rtn2", "float16", "float16", "float16"]


def test_granularity_and_dtypes_arrive():
    config = base()
    override(config, ["quant.granularity=16", "quant.float_dtype=bfloat16"])
    rules = quantization_rules(config.quant)
    assert lookup(rules, KERNEL).granularity == 16
    assert lookup(rules, "norm/scale").name == "bfloat16"


@pytest.mark.parametrize(
    ("override_", "message"),
    [
        ("quant.method=paretto", "unknown quantization method 'paretto'\n  -> did you mean 'paretoq'"),
        ("quant.bits=5", "no grid has 5"),
        ("quant.scale_init=mes", "unknown scale start 'mes'"),
        ("quant.scale_dtype=fp16", "unknown stored dtype 'fp16'\n  -> .*float16"),
        ("quant.float_dtype=int8", "unknown stored dtype 'int8'"),
    ],
)
def test_unknown_names_are_refused(override_, message):
    with pytest.raises(QuantizerError, match=message):
        names(override_)


def test_overrides_of_another_form_are_refused():
    with pytest.raises(ConfigError, match=r"quant\.overrides sets an unknown key 'bit'\n  -> did you mean 'bits'"):
        names(extra=[("layers/.*", {"bit": 4})])
    with pytest.raises(ConfigError, match=r"quant\.overrides holds 'layers/.*'"):
        names(extra=["layers/.*"])
