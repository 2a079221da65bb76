"""Files made for rounded activations: the integer path takes its own, and every other is refused."""

import dataclasses

import numpy as np
import pytest

from lowbit.errors import ModelError
from lowbit.formats import PackedTensor
from lowbit.kernels import Runtime
from lowbit.llama import LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig
from lowbit.llama.activations import INT8, from_meta, to_meta

TOKENS = np.array([[1, 7, 39, 0]])
ALL = ActivationRounding(tuple((path, INT8) for path in LINEARS))


@pytest.fixture
def model(make_packed):
    """Kernels in codes, and everything else in floats: what the integer path rounds is what the rounding names."""
    packed = make_packed()
    packed.tensors["embed.embedding"] = packed.tensors["embed.embedding"].decode().astype(np.float16)
    packed.meta.update(to_meta(ALL, {}))
    return packed


def test_the_integer_path_computes_a_model_that_was_made_for_it(model):
    assert Runtime(model).weights.activations == "int8"
    floats = dataclasses.replace(model, meta={})
    got = Runtime(model).forward(TOKENS)
    np.testing.assert_array_equal(got, Runtime(floats, activations="int8").forward(TOKENS))
    assert np.abs(got - Runtime(floats).forward(TOKENS)).max() > 0


@pytest.mark.parametrize(
    ("rounding", "told"),
    [
        (dataclasses.replace(ALL, cache=CacheKind(4)), "8-bit inputs, 4-bit keys and values, which the runtimes"),
        (ActivationRounding(ALL.inputs[:-1]), "8-bit inputs, which the runtimes without jax do not compute"),
        (ActivationRounding(cache=CacheKind(8)), "8-bit keys and values, which"),
        (ActivationRounding(tuple((path, InputRounding(4)) for path in LINEARS)), "4-bit inputs, which"),
        (
            ActivationRounding((*ALL.inputs[1:], ("layers/attn/q_proj", InputRounding(8, symmetric=False)))),
            "8-bit inputs, which the runtimes",
        ),
    ],
)
def test_other_roundings_are_refused(model, rounding, told):
    model.meta.update(to_meta(rounding, {}))
    with pytest.raises(ModelError, match=f"the model was made for .*{told}.*\n  -> run it in jax"):
        Runtime(model)


def test_products_that_the_integer_path_would_round_otherwise_are_refused(model, make_packed):
    with pytest.raises(ModelError, match="float32 activations are asked for\n  -> leave activations out, or take int8"):
        Runtime(model, activations="float32")
    name = "layers.0.attn.q_proj.kernel"
    codes = model.tensors[name]
    for other in (codes.decode().astype(np.float16), _with_input_factors(codes)):
        model.tensors[name] = other
        with pytest.raises(ModelError, match="would round other products, or not all of these"):
            Runtime(model)
    packed_head = make_packed()
    packed_head.meta.update(to_meta(ALL, {}))
    with pytest.raises(ModelError, match="would round other products"):
        Runtime(packed_head)


def _with_input_factors(tensor):
    return PackedTensor.from_codes(
        tensor.codes(), tensor.scale, tensor.levels, tensor.grid, in_scale=np.ones(tensor.shape[0], np.float16)
    )


def test_the_record_is_read_as_it_was_written(model):
    cfg = LlamaConfig.from_hf(model.config)
    static = ActivationRounding((("layers/mlp/down_proj", InputRounding(8, False, "channel", "static")),), CacheKind(8))
    ranges = {"layers/mlp/down_proj": {key: np.full((2, 1, 32), 0.1, np.float32) for key in ("scale", "zero")}}
    assert from_meta({}, cfg) == (ActivationRounding(), {})
    again, found = from_meta(to_meta(static, ranges), cfg)
    assert again == static
    np.testing.assert_array_equal(found["layers/mlp/down_proj"]["zero"], ranges["layers/mlp/down_proj"]["zero"])
    assert to_meta(ActivationRounding(), {}) == {}
    assert again.described() == "8-bit inputs, 8-bit keys and values"
