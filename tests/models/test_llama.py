"""The framework-free description of the family: what it reads, what it refuses, and its rotary frequencies."""

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
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"num_key_value_heads": 3}, "4 query heads do not divide among 3"),
        ({"head_dim": 7}, "head_dim is 7"),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        config(**changes)


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
