"""Runs with adapters as files: packed equals trained, in jax and numpy, and for transformers and llama.cpp."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lowbit import formats
from lowbit.errors import ModelError, QuantizerError
from lowbit.evals.integer_model import integer_kernels
from lowbit.export import pack_model, verify
from lowbit.export.gguf import to_gguf, write_tensors
from lowbit.export.gguf_adapter import to_gguf_adapter
from lowbit.export.hf import to_hf
from lowbit.formats import Adapter, PackedTensor
from lowbit.generation import Generator, PackedWeight
from lowbit.generation.weights import from_packed
from lowbit.gguf import read
from lowbit.kernels import Runtime
from lowbit.linen import quantize
from lowbit.llama import LINEARS, ActivationRounding, LlamaConfig
from lowbit.llama.activations import INT8, to_meta
from lowbit.models import Transformer, load
from lowbit.models.activations import rounding_hooks
from lowbit.models.gguf import dequantized, interleaved_rows
from lowbit.numerics.quantizers import adapted, doubled, nf4, onebit, paretoq, rtn, stored_as
from lowbit.tree import Rule, flatten, init_state, start_masters

CFG = LlamaConfig(96, 32, 48, 2, 4, 2, 8, tie_embeddings=True, max_positions=64, bos_token_id=0, eos_token_ids=(0,))
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 12))
BASES = {
    "nf4": nf4(16),
    "rtn4_minmax": rtn(4, 16, symmetric=False),
    "paretoq2": paretoq(2, scale_init="max"),
    "onebit": onebit(scale_init="mean"),
    "nf4_doubled": doubled(nf4(16)),
}


@functools.cache
def trained(base):
    """(masters, rules, state) with factors as training would have moved them; of attention, ranks of two sizes."""
    params = jax.jit(Transformer(CFG).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rules = (
        Rule("layers/attn/[qv]_proj/kernel", adapted(BASES[base], 3, 6.0)),
        Rule("layers/(attn|mlp)/(k|up|down)_proj/kernel", adapted(BASES[base], 2, 3.0, "loftq", rounds=1)),
        Rule("layers/.*_proj/kernel", BASES[base]),
        Rule(".*", stored_as(jnp.float16)),
    )

    def start(params):
        state = init_state(rules, params)
        keys = iter(jax.random.split(jax.random.key(1), 100))
        moved = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), state["quant"])
        return start_masters(rules, params, state), {**state, "quant": moved}

    masters, state = jax.jit(start)(params)
    return masters, rules, state


def quantize_with(rules, module_cls, prefix):
    return quantize(module_cls, rules, prefix)


@functools.cache
def packed_of(base):
    params, rules, state = trained(base)
    return pack_model(CFG, params, rules, state, {}, {})


@pytest.mark.parametrize("base", BASES)
def test_packed_equals_trained(base, tmp_path):
    packed = packed_of(base)
    assert len(packed.adapters()) == 5 * CFG.num_layers
    formats.write(tmp_path / "model.lowbit", packed)
    read_back = formats.read(tmp_path / "model.lowbit", verify=True)
    params, rules, state = trained(base)
    result = verify(read_back, CFG, params, rules, state, TOKENS)
    assert result.ok, str(result)
    assert result.weights == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_verify_finds_a_factor_that_is_not_the_trained_one():
    params, rules, state = trained("nf4")
    packed = packed_of("nf4")
    name = "layers.1.mlp.up_proj.kernel"
    tensor = packed.tensors[name]
    b = tensor.adapter.b.copy()
    b[0, 0] = np.nextafter(b[0, 0], np.float16(1))
    changed = dataclasses.replace(tensor, adapter=Adapter(tensor.adapter.a, b))
    other = dataclasses.replace(packed, tensors=packed.tensors | {name: changed})
    assert verify(other, CFG, params, rules, state, TOKENS).differing.keys() == {"layers/mlp/up_proj/kernel"}


@pytest.mark.parametrize("base", ["nf4", "onebit", "nf4_doubled"])
def test_jax_runs_what_numpy_runs(base):
    packed = packed_of(base)
    expected = np.asarray(Runtime(packed).forward(TOKENS))
    without = Runtime(packed.without_adapters()).forward(TOKENS)
    assert np.abs(without - expected).max() > 0.01 * np.abs(expected).max()
    prompts = [list(map(int, row)) for row in TOKENS]
    ours = Generator.from_packed(packed, dtype=jnp.float32).generate(prompts, 8)
    runtime = Runtime(packed)
    for row, prompt in enumerate(prompts):
        text = list(runtime.generate(prompt, 8))
        assert list(np.asarray(ours.tokens)[row][: len(text)]) == text


def test_a_gpu_s_kernel_leaves_matrices_with_adapters_to_xla(monkeypatch):
    packed = packed_of("paretoq2")
    monkeypatch.setattr("lowbit.generation.weights.kernel_runs_here", lambda: True)
    weights = from_packed(CFG, packed, jnp.bfloat16)
    left = flatten(weights.layers["packed"])
    assert {path.removeprefix("layers/") for path in left} == {
        *(f"attn/{name}_proj/kernel" for name in "qkv"),
        *(f"mlp/{name}_proj/kernel" for name in ("up", "down")),
    }
    assert all(w.adapter is not None for w in left.values())
    assert not [joined for joined in weights.layers["joined"] if isinstance(joined.whole, PackedWeight)]
    prompts = [list(map(int, row)) for row in TOKENS]
    text = Generator.from_packed(packed, dtype=jnp.bfloat16).generate(prompts, 4)
    assert np.asarray(text.tokens).shape == (2, 4)
    with pytest.raises(QuantizerError, match="the GPU's kernel adds no adapter\n  -> leave the matrix to XLA"):
        from_packed(CFG, packed, jnp.bfloat16, kernels="gpu")


def test_rounded_inputs_meet_factors_in_numpy_as_in_training():
    params, rules, state = trained("rtn4_minmax")
    rounding = ActivationRounding(tuple((path, INT8) for path in LINEARS))
    packed = dataclasses.replace(packed_of("rtn4_minmax"), meta=to_meta(rounding, {}))
    quantized = functools.partial(quantize_with, rules)
    model = Transformer(CFG, jnp.float32, attention="xla", transform=quantized, hooks=rounding_hooks(rounding))
    ours = np.asarray(jax.jit(model.apply)({"params": params, **state}, jnp.asarray(TOKENS, jnp.int32)))
    theirs = Runtime(packed).forward(TOKENS)
    without = Runtime(packed.without_adapters()).forward(TOKENS)
    # Where float32 rounding tips an input over to the next step, logits move by what a step of 1/127 is worth.
    assert np.sqrt(np.mean(np.square(ours - theirs))) < 0.01 * np.sqrt(np.mean(np.square(ours - without)))


def test_integer_models_refuse_adapters():
    rounding = ActivationRounding(tuple((path, INT8) for path in LINEARS))
    packed = dataclasses.replace(packed_of("paretoq2"), meta=to_meta(rounding, {}))
    with pytest.raises(QuantizerError, match=r"has an adapter of floats\n  -> evaluate it in floats"):
        integer_kernels(CFG, packed)


def test_transformers_gets_the_weights_with_adapters_added(tmp_path):
    packed = packed_of("nf4")
    to_hf(packed, tmp_path / "hf")
    name = "model.layers.1.mlp.up_proj.weight"
    stored = load_file(tmp_path / "hf" / "model.safetensors")[name]
    np.testing.assert_array_equal(stored.T.astype(np.float32), packed.tensors["layers.1.mlp.up_proj.kernel"].decode())
    formats.write(tmp_path / "m.lowbit", packed)
    again = load(tmp_path / "m.lowbit").params["layers"]["mlp"]["up_proj"]["kernel"][1]
    np.testing.assert_array_equal(again, packed.tensors["layers.1.mlp.up_proj.kernel"].decode())


def test_llama_cpp_gets_base_and_adapter_apart(tmp_path):
    packed = packed_of("rtn4_minmax")
    with pytest.raises(ModelError, match=r"has an adapter, which is a file of its own in GGUF\n  -> write packed"):
        to_gguf(packed, "m")
    with pytest.raises(ModelError, match="the model has no adapters\n  -> write the model itself"):
        to_gguf_adapter(packed.without_adapters(), "m")
    adapter = to_gguf_adapter(packed, "m")
    write_tensors(tmp_path / "m.lora.gguf", adapter.metadata, adapter.tensors)
    file = read(tmp_path / "m.lora.gguf")
    assert file.metadata["general.type"] == "adapter"
    assert file.metadata["adapter.type"] == "lora"
    assert file.metadata["adapter.lora.alpha"] == 0.0  # nothing more to multiply by
    assert len(file.tensors) == 2 * 5 * CFG.num_layers
    for ours, theirs, heads in (("attn.q_proj", "attn_q", 4), ("attn.v_proj", "attn_v", None)):
        tensor = packed.tensors[f"layers.1.{ours}.kernel"]
        assert isinstance(tensor, PackedTensor)
        assert tensor.adapter is not None
        a, b = (dequantized(file.tensors[f"blk.1.{theirs}.weight.{end}"], end) for end in ("lora_a", "lora_b"))
        np.testing.assert_array_equal(a, tensor.adapter.a.T)
        rows = tensor.adapter.b.T
        np.testing.assert_array_equal(b, rows if heads is None else interleaved_rows(rows, heads))
