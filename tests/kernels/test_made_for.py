"""Files made for rounded activations: the integer path takes its own, and every other is refused."""

import dataclasses

import numpy as np
import pytest

from lowbit.errors import FormatError, ModelError
from lowbit.formats import PackedTensor
from lowbit.kernels import Runtime
from lowbit.llama import LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig
from lowbit.llama.activations import CACHE_CHOICES, INPUT_CHOICES, INT8, from_meta, to_meta
from lowbit.numerics.activations import AXES, VARIANTS, WIDTHS

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
    state = {key: np.full((2, 1, 32), value, np.float32) for key, value in (("scale", 0.1), ("zero", 3.0))}
    ranges = {"layers/mlp/down_proj": state}
    assert from_meta({}, cfg) == (ActivationRounding(), {})
    again, found = from_meta(to_meta(static, ranges), cfg)
    assert again == static
    np.testing.assert_array_equal(found["layers/mlp/down_proj"]["zero"], ranges["layers/mlp/down_proj"]["zero"])
    assert to_meta(ActivationRounding(), {}) == {}
    assert again.described() == "8-bit inputs, 8-bit keys and values"


def test_what_a_record_may_say_is_what_can_be_computed():
    assert tuple(INPUT_CHOICES["bits"]) == tuple(WIDTHS)
    assert set(INPUT_CHOICES["granularity"]) == set(AXES)
    assert set(INPUT_CHOICES["variant"]) == set(VARIANTS)
    assert INPUT_CHOICES.keys() == set(InputRounding._fields)
    assert CACHE_CHOICES.keys() == set(CacheKind._fields)


@pytest.mark.parametrize(
    ("of", "changes", "told"),
    [
        ("inputs", {"bits": 9}, "bits=9"),
        ("inputs", {"bits": 8.0}, "bits=8.0"),
        ("inputs", {"symmetric": 1}, "symmetric=1"),
        ("inputs", {"granularity": "foo"}, "granularity='foo'"),
        ("inputs", {"range": "neither"}, "range='neither'"),
        ("inputs", {"variant": ["fixed"]}, r"variant=\['fixed'\]"),
        ("inputs", {"granularity": "token"}, "static ranges of tokens, or of LLM-QAT's code"),
        ("inputs", {"variant": "reference"}, "static ranges of tokens, or of LLM-QAT's code"),
        ("cache", {"bits": 8.0}, "bits=8.0"),
        ("cache", {"rotated": "yes"}, "rotated='yes'"),
        ("ranges", {"scale": [[[float("nan")]], [[1.0]]]}, "scales or zero points that cannot be"),
        ("ranges", {"scale": [[[1e300]], [[1.0]]]}, "scales or zero points that cannot be"),
        ("ranges", {"scale": [[[-1.0]], [[1.0]]]}, "scales or zero points that cannot be"),
        ("ranges", {"zero": [[[0.5]], [[1.0]]]}, "scales or zero points that cannot be"),
        ("ranges", {"zero": [[[float("inf")]], [[1.0]]]}, "scales or zero points that cannot be"),
    ],
)
def test_records_that_nothing_could_compute_are_refused(model, of, changes, told):
    cfg, path = LlamaConfig.from_hf(model.config), "layers/mlp/down_proj"
    rounding = ActivationRounding(((path, InputRounding(8, False, "tensor", "static")),), CacheKind(8))
    state = {"scale": np.zeros((2, 1, 1), np.float32), "zero": np.full((2, 1, 1), 3, np.float32)}
    meta = to_meta(rounding, {path: state})
    assert from_meta(meta, cfg)[0] == rounding  # a scale of 0 is that of inputs that were all 0
    record = meta["activations"][of]
    (record if of == "cache" else record[path]).update(changes)
    with pytest.raises(FormatError, match=rf"how activations are rounded cannot be read \(.*{told}"):
        from_meta(meta, cfg)
