"""The framework-free description of the family: what it reads, what it refuses, and its rotary frequencies."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from lowbit.errors import ModelError
from lowbit.llama import LlamaConfig, RopeScaling, param_shapes, rope_frequencies

HF = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def config(**changes):
    return LlamaConfig.from_hf({**HF, **changes})


def test_what_config_json_leaves_out_is_what_transformers_assumes():
    cfg = config()
    assert (cfg.num_kv_heads, cfg.head_dim, cfg.rope_theta, cfg.rms_norm_eps) == (4, 16, 10000.0, 1e-6)
    assert (cfg.max_positions, cfg.tie_embeddings, cfg.qkv_bias, cfg.rope_scaling) == (2048, False, False, None)
    assert (cfg.bos_token_id, cfg.eos_token_ids) == (1, (2,))
    assert config(model_type="qwen2").eos_token_ids == ()
    assert config(eos_token_id=None).eos_token_ids == ()
    assert config(eos_token_id=[5, 6]).to_hf()["eos_token_id"] == [5, 6]


def test_a_config_is_hashable_and_survives_its_own_json():
    cfg = config(rope_scaling={"type": "linear", "factor": 3}, tie_word_embeddings=True)
    assert {cfg: 1}[LlamaConfig.from_hf(cfg.to_hf())] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "family 'gemma2' is not supported\n.*llama, mistral, mobilellm, qwen2"),
        ({"model_type": "mistral"}, "sliding attention window"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding attention window"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding attention window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of several attention types"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"attention_bias": True}, "a bias on the attention output"),
        ({"mlp_bias": True}, "a bias in the MLP"),
        ({"model_type": "mobilellm", "layer_sharing": True}, "layers that share weights"),
        ({"rope_parameters": {"full_attention": {}}}, "rope that differs between layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linea", "factor": 2.0}}, "did you mean 'linear'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' has no factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "lacks a factor of at least 1"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "lacks low_freq_factor, high_freq_factor"),
        ({"vocab_size": None, "hidden_size": None}, "config.json lacks vocab_size, hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in config.json is 0, not a whole number of at least 1"),
        ({"num_attention_heads": 128}, "head_dim is 0"),
        ({"num_key_value_heads": 3}, "4 query heads do not divide among 3"),
        ({"head_dim": 7}, "head_dim is 7"),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        config(**changes)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": "abc"},
            "hidden_size in config.json is 'abc', not a whole number of at least 1\n.*correct hidden_s",
        ),
        ({"hidden_size": 64.5}, r"hidden_size in config.json is 64\.5, not a whole number"),
        ({"vocab_size": True}, "vocab_size in config.json is True, not a whole number"),
        ({"vocab_size": [100]}, r"vocab_size in config.json is \[100\], not a whole number"),
        ({"vocab_size": 10**400}, "vocab_size in config.json is 10+[.]{3}, not a whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads in config.json is 0, not"),
        ({"max_position_embeddings": -1}, "max_position_embeddings in config.json is -1, not"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps in config.json is '1e-5', not a number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps in config.json is 0, not a number above 0"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps in config.json is nan, not a number above 0"),
        ({"rope_theta": -1e4}, r"rope_theta in config.json is -10000\.0, not a number above 0"),
        ({"rope_theta": math.inf}, "rope_theta in config.json is inf, not a number above 0"),
        ({"rope_theta": 10**400}, "rope_theta in config.json is 10+[.]{3}, not a number above 0"),
        ({"rope_theta": 1}, r"rope_theta is 1\.0\n.*above 1"),
        ({"rope_scaling": "x"}, "rope_scaling in config.json is 'x', not a JSON object"),
        ({"rope_parameters": [1]}, r"rope_parameters in config.json is \[1\], not a JSON object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta in rope_parameters is 'x', not a number"),
        ({"rope_scaling": {"type": ["linear"]}}, r"type in rope_scaling is \['linear'\], not a string"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor in rope_scaling is 'x', not a number above 0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, r"from low_freq_factor 4\.0 to high_freq_factor 4\.0\n"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 5.0}}, "set high_freq_factor above low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": "x"}}, "original_max_position_embeddings in"),
        ({"rope_scaling": YARN | {"beta_slow": 32}}, r"from beta_slow 32\.0 to beta_fast 32\.0"),
        ({"rope_scaling": YARN | {"truncate": "no"}}, "truncate in rope_scaling is 'no', not true or false"),
        (
            {"rope_scaling": YARN | {"attention_factor": 0}},
            "attention_factor in rope_scaling is 0, not a number above 0",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}, "head_dim is 2, whose single frequency"),
        (
            {"eos_token_id": "</s>"},
            "eos_token_id in config.json is '</s>', not a whole number of at least 0, or a list",
        ),
        ({"eos_token_id": [2, "x"]}, r"eos_token_id in config.json is \[2, 'x'\], not"),
        ({"bos_token_id": "<s>"}, "bos_token_id in config.json is '<s>', not a whole number of at least 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings in config.json is 'false', not true or false"),
        ({"layer_types": 3}, "layer_types in config.json is 3, not a list of strings"),
        ({"mlp_bias": "yes"}, "mlp_bias in config.json is 'yes', not true or false"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_key(changes, message):
    with pytest.raises(ModelError, match=message):
        config(**changes)


def test_a_config_that_is_no_object_and_one_of_another_place():
    with pytest.raises(ModelError, match=r"config\.json is \[1\], not a JSON object\n.*download"):
        LlamaConfig.from_hf([1])
    with pytest.raises(ModelError, match=r"hidden_size in m\.gguf is 'x'"):
        LlamaConfig.from_hf({**HF, "hidden_size": "x"}, "m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
        ({"rope_theta": 0.0}, "rope_theta is 0"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"max_positions": 0}, "max_positions is 0"),
    ],
)
def test_constants_that_give_no_model_are_refused_however_they_are_given(changes, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(config(), **changes)


def test_scalings_that_give_no_frequencies_are_refused_however_they_are_given():
    with pytest.raises(ModelError, match=r"from low_freq_factor 4\.0 to high_freq_factor 4\.0"):
        RopeScaling("llama3", 8.0, 512, 4.0, 4.0)
    with pytest.raises(ModelError, match="original_max_positions of rope scaling is 0"):
        RopeScaling("yarn", 8.0, 0)
    with pytest.raises(ModelError, match="with factor inf lacks a factor"):
        RopeScaling("linear", math.inf)


def test_whole_numbers_may_be_written_with_a_point():
    assert config(hidden_size=64.0) == config()


def test_plain_and_linear_frequencies():
    plain, attention_factor = rope_frequencies(config())
    want = [10000.0 ** (-2 * i / 16) for i in range(8)]
    np.testing.assert_allclose(plain, want, rtol=1e-7)
    assert (plain.dtype, attention_factor) == (np.float32, 1.0)
    linear, _ = rope_frequencies(config(rope_scaling={"type": "linear", "factor": 4.0}))
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-7)


def test_dynamic_frequencies_change_only_past_the_context():
    cfg = config(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=32)
    plain = rope_frequencies(config())[0]
    np.testing.assert_array_equal(rope_frequencies(cfg)[0], plain)
    np.testing.assert_array_equal(rope_frequencies(cfg, 32)[0], plain)
    base = 10000.0 * (2 * 64 / 32 - 1) ** (16 / 14)
    np.testing.assert_allclose(rope_frequencies(cfg, 64)[0], base ** (-np.arange(8) / 8), rtol=1e-6)


def test_llama3_frequencies_keep_fast_turns_and_divide_slow_ones():
    entry = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    cfg = config(rope_scaling={**entry, "original_max_position_embeddings": 512})
    plain, scaled = rope_frequencies(config())[0], rope_frequencies(cfg)[0]
    wavelength = 2 * math.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 512 / 4], plain[wavelength < 512 / 4])
    np.testing.assert_allclose(scaled[wavelength > 512], plain[wavelength > 512] / 8, rtol=1e-6)
    between = (wavelength > 512 / 4) & (wavelength < 512)
    assert between.any()
    assert np.all((scaled < plain)[between] & (scaled > plain / 8)[between])


def test_yarn_temperature_and_stated_factors():
    entry = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    cfg = config(rope_scaling=entry, max_position_embeddings=256)
    assert cfg.rope_scaling == RopeScaling("yarn", 4.0, 64)  # the ratio of both contexts
    assert rope_frequencies(cfg)[1] == pytest.approx(0.1 * math.log(4) + 1)
    stated = config(rope_scaling={**entry, "factor": 4.0, "attention_factor": 1.5})
    assert rope_frequencies(stated)[1] == 1.5


def test_parameter_shapes_sum_to_a_known_size():
    """SmolLM2-135M has 134,515,008 parameters."""
    cfg = LlamaConfig(49152, 576, 1536, 30, 9, 3, 64)
    assert sum(math.prod(shape) for shape in param_shapes(cfg).values()) == 134_515_008


def test_importing_it_loads_no_framework():
    program = "import sys, lowbit.llama; print({'jax', 'flax', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
