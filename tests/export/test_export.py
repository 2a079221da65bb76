"""Packed equals trained: for every method, for mixed widths, groups, biases and a quantized embedding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import formats
from lowbit.errors import ModelError
from lowbit.export import pack_model, verify
from lowbit.export.gguf import to_gguf
from lowbit.export.hf import to_hf
from lowbit.export.packed import unpack_params
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer
from lowbit.numerics import quantizers
from lowbit.numerics.quantizers import (
    absmean_ternary,
    doubled,
    fixed,
    llmqat,
    onebit,
    rtn,
    stored_as,
    transposed,
)
from lowbit.tree import Rule, bits_report, fake_quant, flatten, init_state

CFG = LlamaConfig.from_hf(
    {
        "model_type": "qwen2",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 64,
    }
)
KERNELS = "layers/(attn|mlp)/.*_proj/kernel"
# Scales are moved from where they started anyway: a search for the start would be compiled for nothing.
paretoq = functools.partial(quantizers.paretoq, scale_init="max")
METHODS = {
    **{f"paretoq{bits}": paretoq(bits) for bits in (1, 1.58, 2, 3, 4)},
    "mixed": paretoq([1, 4]),
    "groups": paretoq(3, granularity=16),
    "float32_scales": paretoq(2, scale_dtype=jnp.float32),
    "bfloat16_scales": paretoq(2, scale_dtype=jnp.bfloat16),
    "rtn": rtn(4),
    "minmax": rtn(3, symmetric=False, granularity=16),
    "per_tensor": rtn(8, granularity="tensor"),
    "llmqat": llmqat(4),
    "absmean": absmean_ternary(),
    "doubled": doubled(paretoq(3, granularity=16)),
    "doubled_minmax_fixed": fixed(doubled(rtn(4, 16, symmetric=False))),
    "onebit": onebit(),
    "onebit_groups_float32": onebit(granularity=16, scale_dtype=jnp.float32),
    "float": None,
}
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 12))


@functools.cache
def started(cfg):
    """The float parameters that all methods start from."""
    return jax.jit(Transformer(cfg).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def trained(quantizer, embedding, cfg=CFG):
    """A model some steps away from its start: weights and scales moved, as training would."""
    params = started(cfg)
    rules = (Rule("embed/embedding", embedding), Rule(KERNELS, quantizer), Rule(".*", stored_as(jnp.float16)))
    state = jax.jit(functools.partial(init_state, rules))(params)
    return moved(params, 1), rules, {**state, "quant": moved(state["quant"], 2)}


def moved(tree, seed):
    """By numpy: jax would compile the draws of each shape, once more for every method."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jnp.asarray(w * (1 + 0.1 * rng.standard_normal(w.shape)).astype(w.dtype)), tree)


@pytest.mark.parametrize("name", METHODS)
def test_packed_file_is_the_trained_model(name, tmp_path):
    embeddings = {"float": stored_as(jnp.bfloat16), "doubled": transposed(doubled(rtn(8, 16)))}
    params, rules, state = trained(METHODS[name], embeddings.get(name, transposed(rtn(8))))
    formats.write(tmp_path / "m.lowbit", pack_model(CFG, params, rules, state, {}, {"method": name}))
    packed = formats.read(tmp_path / "m.lowbit", verify=True)
    result = verify(packed, CFG, params, rules, state, TOKENS)
    assert result.ok, str(result)
    assert result.weights == sum(w.size for w in jax.tree.leaves(params))
    # The bound is no blank cheque: it stays far below what one changed code does.
    assert 0 < result.max_logit_error < result.logit_bound < 1e-4


def test_separate_head(tmp_path):
    cfg = dataclasses.replace(CFG, tie_embeddings=False, qkv_bias=False)
    params, rules, state = trained(paretoq(2), stored_as(jnp.float16), cfg)
    packed = pack_model(cfg, params, rules, state, {}, {})
    assert verify(packed, cfg, params, rules, state, TOKENS).ok


def test_unpacked_parameters_are_the_fake_quantized_ones():
    params, rules, state = trained(paretoq([2, 1.58]), transposed(rtn(4)))
    shipped = unpack_params(CFG, pack_model(CFG, params, rules, state, {}, {}))
    for path, w_hat in flatten(fake_quant(rules, params, state)).items():
        np.testing.assert_array_equal(shipped[path], w_hat, err_msg=path)


def test_one_changed_code_is_found():
    params, rules, state = trained(paretoq(2), stored_as(jnp.float16))
    packed = pack_model(CFG, params, rules, state, {}, {})
    name = "layers.1.mlp.up_proj.kernel"
    tensor = packed.tensors[name]
    codes = tensor.codes().copy()
    codes[3, 5] = (codes[3, 5] + 1) % 4
    packed.tensors[name] = formats.PackedTensor.from_codes(codes, tensor.scale, tensor.levels, tensor.grid)
    result = verify(packed, CFG, params, rules, state, TOKENS)
    assert not result.ok
    assert result.differing == {"layers/mlp/up_proj/kernel": 1}
    assert result.max_logit_error > result.logit_bound
    assert "1 DIFFER" in str(result)
    assert "is NOT the trained model" in str(result)


ODD = dataclasses.replace(CFG, hidden_size=36, intermediate_size=44)
"""Rows of 36, 32 and 44 codes: of three levels, and of two, they end within a byte."""


@pytest.mark.parametrize(
    "quantizer",
    [paretoq(4), paretoq(1.58), paretoq(1), paretoq([3, 1.58]), doubled(rtn(4, 4, symmetric=False))],
    ids=lambda quantizer: quantizer.name,
)
def test_bits_in_the_report_are_the_bytes_in_the_file(quantizer):
    params, rules, state = trained(quantizer, transposed(doubled(rtn(3))), ODD)
    summary = formats.summarize(pack_model(ODD, params, rules, state, {}, {}))
    report = bits_report(rules, params)
    assert summary.quantized_bits == pytest.approx(report.quantized_bits_per_weight, rel=1e-12)
    assert summary.model_bits == pytest.approx(report.model_bits_per_weight, rel=1e-12)


def with_norms(cfg=CFG):
    return dataclasses.replace(cfg, linear_norm=True)


def test_a_model_with_norms_behind_its_kernels_ships_as_it_trains(tmp_path):
    cfg = with_norms()
    params, rules, state = trained(onebit(), stored_as(jnp.float16), cfg)
    path = tmp_path / "model.lowbit"
    formats.write(path, pack_model(cfg, params, rules, state, {}, {}))
    packed = formats.read(path, verify=True)
    assert LlamaConfig.from_hf(packed.config) == cfg
    result = verify(packed, cfg, params, rules, state, TOKENS)
    assert result.ok, str(result)
    without = verify(packed, CFG, params, rules, state, TOKENS)
    assert not without.differing
    assert without.max_logit_error > without.logit_bound


def test_other_engines_get_neither_such_norms_nor_factors_of_inputs(tmp_path):
    cfg = with_norms()
    params, rules, state = trained(onebit(), stored_as(jnp.float16), cfg)
    normed = pack_model(cfg, params, rules, state, {}, {})
    plain = dataclasses.replace(normed, config=CFG.to_hf())
    with pytest.raises(ModelError, match=r"a norm behind every linear layer, which transformers does not"):
        to_hf(normed, tmp_path / "hf")
    with pytest.raises(ModelError, match=r"which llama\.cpp does not compute"):
        to_gguf(normed, "m")
    with pytest.raises(ModelError, match=r"k_proj\.kernel has a factor for each input, which no type of GGUF holds"):
        to_gguf(plain, "m")
