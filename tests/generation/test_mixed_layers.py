"""Layers of one matrix that differ in width, grid or groups, or are floats in some, run packed all the same."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.formats import PackedTensor, decode
from lowbit.generation import Generator
from lowbit.generation.floats import OwnLayers
from lowbit.generation.packed import PackedWeight
from lowbit.kernels.runtime import Runtime
from lowbit.pallas import GpuWeight

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PROMPTS = [[3, 4, 5], [6]]


def mixed(make, **changes):
    """Another width for gate in layer 1, one group for up in layer 1, and floats for o in layer 0."""
    packed = make(**changes)
    gate, up, o = ("layers.1.mlp.gate_proj.kernel", "layers.1.mlp.up_proj.kernel", "layers.0.attn.o_proj.kernel")
    old = packed.tensors[gate]
    packed.tensors[gate] = PackedTensor.from_codes(old.codes(), old.scale, np.arange(-8, 8, dtype=np.float32), "int4")
    old = packed.tensors[up]
    packed.tensors[up] = PackedTensor.from_codes(old.codes(), old.scale[:1], old.levels, old.grid)
    packed.tensors[o] = decode(packed.tensors[o])
    return packed


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_tokens_are_those_of_numpy(make, activations):
    packed = mixed(make)
    runtime = Runtime(packed, kernels="numpy", activations=activations)
    expected = [runtime.generate(prompt, 5, stop_tokens=()) for prompt in PROMPTS]
    generator = Generator.from_packed(packed, activations=activations)
    found = generator.generate(PROMPTS, 5, stop_tokens=())
    assert found.rows() == [list(tokens) for tokens in expected]


def test_each_layer_stays_packed(make):
    weights = Generator.from_packed(mixed(make)).weights
    mlp, attn = (weights.layers["stacked"]["layers"][name] for name in ("mlp", "attn"))
    gate = mlp["gate_proj"]["kernel"]
    assert isinstance(gate, OwnLayers)
    assert [len(w.levels) for w in gate.matrices] == [4, 16]
    assert [w.scale.shape[0] for w in mlp["up_proj"]["kernel"].matrices] == [2, 1]
    assert [type(w) for w in attn["o_proj"]["kernel"].matrices][1] is PackedWeight
    assert set(weights.layers["packed"]["layers"]["mlp"]) == {"down_proj"}


def test_the_gpus_layout_takes_each_by_itself(make):
    packed = mixed(make, **WIDE)
    generator = Generator.from_packed(packed, kernels="gpu", activations="int8")
    gate = generator.weights.layers["stacked"]["layers"]["mlp"]["gate_proj"]["kernel"]
    assert all(isinstance(w, GpuWeight) and w.layer is None for w in gate.matrices)
    plain = Generator.from_packed(packed, activations="int8")
    tokens = [one.generate(PROMPTS, 3, stop_tokens=()).tokens for one in (generator, plain)]
    np.testing.assert_array_equal(*tokens)
    assert jnp.asarray(tokens[0]).shape == (2, 3)
