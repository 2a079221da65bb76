"""Matrices with the same inputs, joined for the GPU's layout: the same codes, scales and sums as apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import pallas
from lowbit.bench.random_model import LEVELS, random_tensor
from lowbit.formats import PackedTensor
from lowbit.generation import Generator, from_packed, joined, loop
from lowbit.generation.decoder import _DOT_GENERALS
from lowbit.generation.joined import Columns, Joined, families, join, may_be_joined
from lowbit.generation.packed import PackedWeight, for_gpu
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, LlamaConfig, param_shapes
from lowbit.llama.activations import INT8
from lowbit.pallas.tiles import Tile

K, OUTPUTS = 192, (24, 8, 16)
QKV = tuple(f"layers/attn/{name}_proj/kernel" for name in "qkv")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""Groups of 32 and 64 inputs."""


def weight(bits, n, groups=1, zero=False, layers=2):
    """A stack of random matrices [layers, K n] as the file holds them."""
    rng = np.random.default_rng(n)
    tensors = [random_tensor(K, n, bits, rng, groups) for _ in range(layers)]
    scale = rng.uniform(0.5, 2, (layers, groups, n)).astype(np.float16)
    zeros = rng.integers(-1, 2, scale.shape).astype(np.float16) if zero else None
    levels = tuple(float(level) for level in tensors[0].levels)
    return PackedWeight(np.stack([t.packed for t in tensors]), scale, zeros, None, levels, K)


def members(bits, **settings):
    return [weight(bits, n, **settings) for n in OUTPUTS]


@pytest.mark.parametrize("settings", [{}, {"groups": 3, "zero": True}], ids=["one scale", "groups, zeros"])
@pytest.mark.parametrize("bits", LEVELS)
def test_the_layout_is_that_of_the_parts_side_by_side(bits, settings):
    apart = members(bits, **settings)
    whole, parts = for_gpu(join(apart)), [for_gpu(w) for w in apart]
    assert (whole.n, whole.span, whole.levels) == (sum(OUTPUTS), parts[0].span, parts[0].levels)
    jax.tree.map(lambda all_of, *own: np.testing.assert_array_equal(all_of, np.concatenate(own, 1)), whole, *parts)


def test_one_scale_for_a_matrix_becomes_one_for_each_output():
    apart = [dataclasses.replace(w, scale=w.scale[:, :, :1]) for w in members(2)]
    whole, parts = for_gpu(join(apart)), [for_gpu(w) for w in apart]
    np.testing.assert_array_equal(whole.scale, np.concatenate([part.scale for part in parts], 1))


@pytest.mark.parametrize("bits", [1.58, 3])
def test_the_kernels_sums_are_those_of_the_parts(bits):
    """Each output is a sum of its own, in the same order where the tile is the same: no bit may differ."""
    apart, tile = members(bits, layers=1), Tile(8, 1, 1, 1)
    x = jax.random.normal(jax.random.key(0), (1, K), jnp.bfloat16)
    whole, *parts = [
        pallas.matmul(x, for_gpu(w).of_layer(jnp.int32(0)), "interpreted", tile) for w in (join(apart), *apart)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts, 1))


@pytest.mark.parametrize("activations", ["float32", "int8"])
@pytest.mark.parametrize("bits", LEVELS)
def test_xlas_products_are_those_of_the_parts(bits, activations):
    """Whole numbers as activations, whose sums are exact in any order."""
    apart = members(bits, groups=3 if activations == "float32" else 1)
    x = jnp.asarray(np.random.default_rng(0).integers(-8, 9, (3, K)), jnp.bfloat16)
    paths = dict(zip(QKV, OUTPUTS, strict=True))
    columns = Joined(for_gpu(join(apart)), tuple(paths.items())).columns()
    multiply = jax.jit(lambda w: _DOT_GENERALS[activations](x, w.of_layer(jnp.int32(1)), None))
    for path, one in zip(QKV, apart, strict=True):
        np.testing.assert_array_equal(multiply(columns[path]), multiply(for_gpu(one)))


def test_equal_products_become_one():
    whole = for_gpu(join(members(2)))
    outputs = tuple(zip(QKV, OUTPUTS, strict=True))

    def project(x, whole):
        columns = Joined(whole, outputs).columns()
        return [_DOT_GENERALS["int8"](x, columns[path].of_layer(jnp.int32(0)), None) for path in QKV]

    program = jax.jit(project).lower(jnp.ones((1, K), jnp.bfloat16), whole).compile().as_text()
    assert program.count(" dot(") == 1


def test_a_model_computes_the_same_and_holds_nothing_twice(make, monkeypatch):
    packed = make(**WIDE)
    cfg = LlamaConfig.from_hf(packed.config)
    together = from_packed(cfg, packed, jnp.bfloat16, "gpu")
    assert [dict(one.outputs) for one in together.layers["joined"]] == [
        dict(zip(QKV, (64, 32, 32), strict=True)),
        dict.fromkeys(("layers/mlp/gate_proj/kernel", "layers/mlp/up_proj/kernel"), 128),
    ]
    monkeypatch.setattr(joined, "SIBLINGS", ())
    apart = from_packed(cfg, packed, jnp.bfloat16, "gpu")
    assert apart.layers["joined"] == ()
    assert together.nbytes == apart.nbytes


def logits_of(packed, kernels="gpu"):
    """After a short prompt, with 8-bit activations."""
    generator = Generator.from_packed(packed, activations="int8", kernels=kernels)
    cache = loop.start(generator.decoder, jnp.zeros(1, jnp.int32), 8)
    return loop.prefill(generator.decoder, generator.weights, jnp.asarray([[3, 4, 5]]), cache)[0], generator.weights


@pytest.mark.parametrize("changes", [{"model_type": "qwen2"}, {"lowbit_linear_norm": True}], ids=str)
def test_biases_and_norms_behind_a_product_are_each_matrixs_own(make, monkeypatch, changes):
    """Products are equal; what XLA fuses with them may round otherwise, and turn a code of an activation over, 1/127
    of the largest. The columns, or the bias, of another matrix would move logits by as much as they are."""
    packed = make(**WIDE, **changes)
    together, _ = logits_of(packed)
    monkeypatch.setattr(joined, "SIBLINGS", ())
    apart, _ = logits_of(packed)
    np.testing.assert_allclose(together, apart, rtol=0, atol=2**-6 * float(jnp.max(jnp.abs(apart))))


def test_matrices_of_unlike_kinds_stay_apart():
    first, second = weight(2, 8), weight(2, 16)
    factors = np.ones((2, K), np.float16)
    assert may_be_joined(dict(zip(QKV, (first, second), strict=False)), FLOAT_ACTIVATIONS)
    for other in (
        weight(4, 16),
        weight(2, 16, groups=3),
        weight(2, 16, zero=True),
        dataclasses.replace(second, in_scale=factors),
        jnp.ones((2, K, 16)),
    ):
        assert not may_be_joined(dict(zip(QKV, (first, other), strict=False)), FLOAT_ACTIVATIONS)
    assert not may_be_joined({QKV[0]: first}, FLOAT_ACTIVATIONS)


def test_inputs_that_are_rounded_apart_keep_matrices_apart():
    found = dict(zip(QKV, members(2), strict=True))
    layers = [path.removesuffix("/kernel") for path in QKV]

    def joins(*inputs):
        return may_be_joined(found, ActivationRounding(tuple(zip(layers, inputs, strict=False))))

    assert joins(INT8, INT8, INT8)
    assert not joins(INT8, INT8)
    assert not joins(INT8, INT8, INT8._replace(bits=4))
    static = INT8._replace(granularity="tensor", range="static")
    assert not joins(static, static, static)


def test_a_model_of_mixed_widths_runs_with_some_of_its_matrices_apart(make):
    packed = make(**WIDE)
    name = "attn.v_proj.kernel"
    tensors = dict(packed.tensors)
    for layer in range(2):
        old = tensors[f"layers.{layer}.{name}"]
        levels = np.arange(-8, 8, dtype=np.float32)
        tensors[f"layers.{layer}.{name}"] = PackedTensor.from_codes(old.codes(), old.scale, levels, "int4")
    packed = dataclasses.replace(packed, tensors=tensors)
    (some, weights), (none, _) = logits_of(packed), logits_of(packed, "xla")
    assert len(weights.layers["joined"]) == 1
    assert set(weights.layers["stacked"]["layers"]["attn"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert int(jnp.argmax(some)) == int(jnp.argmax(none))


def test_families_are_all_parameters_once(make):
    paths = list(param_shapes(LlamaConfig.from_hf(make().config)))
    found = families(paths)
    assert sorted(path for family in found for path in family) == sorted(paths)
    assert QKV in found
    assert families(["norm/scale", *QKV[:2]]) == [("norm/scale",), (QKV[0],), (QKV[1],)]


def test_columns_are_read_where_the_whole_lies():
    columns = Columns(for_gpu(join(members(2))), 24, 8)
    assert columns.of_layer(jnp.int32(1)).whole.words[0] is columns.whole.words[0]
    np.testing.assert_array_equal(columns.of(jnp.arange(48)[None]), [np.arange(24, 32)])
