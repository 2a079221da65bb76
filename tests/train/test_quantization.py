"""From `config.quant` to rules."""

import jax
import jax.numpy as jnp
import pytest

from lowbit.config import base, override
from lowbit.errors import ConfigError, QuantizerError, RuleError
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
        (("quant.method=rtn", "quant.symmetric=false"), "rtn2_minmax"),
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


def test_the_variant_of_llmqat_arrives():
    def gradient_beyond_two(variant):
        config = base()
        override(config, ["quant.method=llmqat", "quant.bits=4", f"quant.variant={variant}"])
        quantizer = lookup(quantization_rules(config.quant), KERNEL)
        w = jnp.array([[3.0], [1.0]])
        return jax.grad(lambda w: jnp.sum(quantizer.fake(w, quantizer.init(w))))(w)[0, 0]

    assert gradient_beyond_two("fixed") == 1.0
    assert gradient_beyond_two("reference") == 0.0
    with pytest.raises(QuantizerError, match="unknown variant 'origin'"):
        names("quant.method=llmqat", "quant.bits=4", "quant.variant=origin")


@pytest.mark.parametrize(
    ("override_", "message"),
    [
        ("quant.symmetric=false", r"quant\.symmetric=False is set, .*'paretoq' has no such choice\n  -> .*method=rtn"),
        ("quant.variant=reference", r"quant\.variant='reference' is set, .*\n  -> set quant\.method=llmqat"),
    ],
)
def test_choices_of_another_method_are_refused(override_, message):
    with pytest.raises(ConfigError, match=message):
        names(override_)
    with pytest.raises(ConfigError, match="'rtn' has no such choice"):
        names("quant.method=rtn", "quant.layer_bits=2,2")


def test_an_override_with_another_method_leaves_the_choices_of_the_old_one_behind():
    got = names("quant.method=rtn", "quant.symmetric=false", extra=[("layers/mlp/.*", {"method": "paretoq"})])
    assert got[:2] == ["paretoq2", "rtn2_minmax"]


def test_the_embedding_has_a_scale_a_vocabulary_row():
    for pattern in ("embed/.*", "embed/embedding|layers/mlp/.*", ".*(embedding|kernel)"):
        config = base()
        config.quant.overrides = ((pattern, {"bits": 4.0}),)
        rules = quantization_rules(config.quant)
        scale = jax.eval_shape(lookup(rules, "embed/embedding").init, jnp.ones((11, 6)))["scale"]
        assert scale.shape == (1, 11)
        assert lookup(rules, KERNEL).name == ("paretoq2" if pattern == "embed/.*" else "paretoq4")
    assert names(extra=[("embed/.*", {"bits": 4.0}), (".*", {"method": "float"})])[0] == "float16"


def test_a_broken_pattern_and_a_section_of_another_version_are_refused():
    with pytest.raises(RuleError, match=r"rule 'embed/\[' is no regular expression"):
        names(extra=[("embed/[", {"bits": 4.0})])
    quant = base().quant.copy_and_resolve_references().unlock()
    del quant["symmetric"]
    with pytest.raises(ConfigError, match="the section quant lacks symmetric"):
        quantization_rules(quant)
