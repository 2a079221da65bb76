"""Inputs of eight bits: ranges against direct searches, the layer's scales, and the file that says them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.export.packed import unpack_params
from lowbit.llama import LINEARS
from lowbit.llama.activations import from_meta
from lowbit.models.activations import range_variables, rounding_hooks
from lowbit.models.blockwise import LINEAR_STAGES, apply_block, linear_inputs
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.models.transformer import Transformer
from lowbit.numerics.activations import integers, range_of, range_state, static
from lowbit.numerics.integer import Codes, integer_linear
from lowbit.ptq import METHODS, Activations, Calibration, Options, Plan, assemble, make_target, pack_layers
from lowbit.ptq import quantize_layers as on_all_devices
from lowbit.ptq.activations import DOWN, OCTAVES, PER_OCTAVE, RANGES, Seen, _counts, _largest, input_states
from lowbit.tree import unflatten

TOKENS = np.random.default_rng(7).integers(0, 40, (16, 24)).astype(np.int32)


def plan(name, activations, calibrated=True):
    method = METHODS[name]
    target = make_target("integer", 8, "channel", method.ranges[0])
    return Plan(method, target, Options(), Calibration(TOKENS, 0, "noise") if calibrated else None, activations)


def quantized(model, settings, **more):
    cfg, params = model
    source = ModelInMemory(Pretrained(cfg, params, {}))
    layers = on_all_devices(source, settings, devices=jax.devices()[:1], **more)
    return source, list(layers)


def seen_of(values, batches=4):
    """The histogram of some numbers, made by numpy."""
    magnitude = np.abs(values)
    last = OCTAVES * PER_OCTAVE
    octaves = np.log2(np.maximum(magnitude / magnitude.max(), 2.0 ** -(OCTAVES + 1)))
    index = np.clip(np.round(last + octaves * PER_OCTAVE), 0, last).astype(int)
    largest = magnitude.reshape(batches, -1).max(axis=1).astype(np.float32)
    return Seen(largest, np.bincount(index.reshape(-1), minlength=last + 1))


@pytest.mark.parametrize("outliers", [1.0, 30.0, 1000.0])
def test_ranges_are_those_of_a_direct_search(outliers):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(40_012).astype(np.float32)
    x[::4001] *= outliers
    x[:100] = 0
    seen = seen_of(x)
    assert RANGES["max"](seen) == np.abs(x).max()
    exact = np.quantile(np.abs(x), 0.9999, method="inverted_cdf")
    assert RANGES["percentile"](seen) == pytest.approx(exact, rel=2 ** (0.5 / PER_OCTAVE) - 1 + 1e-6)

    def error(reach):
        step = reach / 127
        return np.square(np.clip(np.rint(x / step), -127, 127) * step - x).sum()

    tried = np.abs(x).max() * 2.0 ** (-np.arange(80) / 8)
    # The histogram knows magnitudes to half a bin, so that its choice errs by little more than the best.
    assert error(RANGES["mse"](seen)) <= 1.02 * min(map(error, tried))
    moving = seen.largest[0]
    for largest in seen.largest[1:]:
        moving = 0.9 * moving + 0.1 * largest
    assert RANGES["moving"](seen) == pytest.approx(moving)


def test_histograms_are_those_of_the_inputs(model, block_of):
    cfg, params = model
    block = block_of(params, 0)
    hidden = jnp.asarray(params["embed"]["embedding"][TOKENS.reshape(4, 4, 24)])
    largest = _largest(cfg, block, hidden)
    counts = _counts(cfg, block, hidden, {path: jnp.max(each) for path, each in largest.items()})
    for stage in LINEAR_STAGES:
        x = np.stack([np.asarray(linear_inputs(cfg, block, h)[stage[0]]) for h in hidden])
        found = np.asarray(counts[stage[0]]).sum(axis=0)
        np.testing.assert_allclose(largest[stage[0]], np.abs(x).max(axis=(1, 2, 3)), rtol=1e-4)
        assert found.sum() == x.size
        # A magnitude on the border of two bins may fall to either side.
        assert np.abs(np.cumsum(found) - np.cumsum(seen_of(x).counts)).max() <= 0.01 * x.size


def test_static_scales_belong_to_the_folded_layer(model):
    cfg, _ = model
    settings = plan("smoothquant", Activations("int8-static", "max"))
    source, layers = quantized(model, settings)
    hidden = jnp.asarray(source.outside("embed/embedding")[TOKENS])[None]
    for layer in layers:
        block = jax.tree.map(jnp.asarray, unflatten(layer.decoded(settings.target)))
        inputs = linear_inputs(cfg, block, hidden[0])
        for path, state in layer.inputs.items():
            np.testing.assert_allclose(state["scale"][0, 0] * 127, jnp.abs(inputs[path]).max(), rtol=1e-4)
        hidden = apply_block(cfg, block, hidden[0])[None]
    assert set(layers[0].inputs) == {path for stage in LINEAR_STAGES for path in stage}


@pytest.mark.parametrize("name", ["int8-static", pytest.param("int8-dynamic", marks=pytest.mark.slow), "int8-mixed"])
def test_a_file_holds_what_was_found_and_predicts_near_float(name, model):
    cfg, params = model
    settings = plan("smoothquant", Activations(name))
    source, layers = quantized(model, settings)
    result = assemble(source, layers, settings.target)
    packed, _ = pack_layers(source, layers, settings.target, {}, settings.activations)
    rounding, ranges = from_meta(packed.meta, cfg)
    assert rounding == settings.activations.rounding()
    calibrated = {"int8-static": set(LINEARS), "int8-dynamic": set(), "int8-mixed": set(LINEARS) - {DOWN}}
    assert set(ranges) == calibrated[name]
    for path, own in ranges.items():
        np.testing.assert_array_equal(own["scale"], result.ranges[path]["scale"])
    decoded = jax.tree.map(jnp.asarray, unflatten(unpack_params(cfg, packed)))
    tokens = jnp.asarray(TOKENS[:4])
    exact = Transformer(cfg, jnp.float32).apply({"params": jax.tree.map(jnp.asarray, params)}, tokens)
    rounded = Transformer(cfg, jnp.float32, hooks=rounding_hooks(rounding)).apply(
        {"params": decoded, "grid": range_variables(ranges)}, tokens
    )
    weights_alone = Transformer(cfg, jnp.float32).apply({"params": decoded}, tokens)
    far = float(jnp.abs(rounded - exact).mean() / jnp.abs(exact).mean())
    assert 0 < float(jnp.abs(weights_alone - exact).mean() / jnp.abs(exact).mean()) < far < 0.1


def test_integers_alone_give_what_rounded_floats_do(model):
    """The product of a calibrated kernel, without a float: its codes are those of the fake-quantized product."""
    cfg, _ = model
    settings = plan("rtn", Activations("int8-static", "max"))
    source, layers = quantized(model, settings)
    path = "mlp/up_proj/kernel"
    layer = layers[0]
    block = jax.tree.map(jnp.asarray, unflatten(layer.decoded(settings.target)))
    x = linear_inputs(cfg, block, jnp.asarray(source.outside("embed/embedding")[TOKENS[:4]]))[path].reshape(-1, 32)
    quantizer, state = static(8), {key: jnp.asarray(leaf) for key, leaf in layer.inputs[path].items()}
    codes = integers(quantizer.encode(x, state))
    assert codes.zero is None
    y = quantizer.fake(x, state) @ block["mlp"]["up_proj"]["kernel"]
    outputs = float(range_state(range_of(y, "tensor"), 8, True)["scale"][0, 0])
    kernel = settings.target.quantizer.encode(
        jnp.asarray(layer.leaves[path]), {key: jnp.asarray(leaf) for key, leaf in layer.kernels[path].state.items()}
    )
    linear = integer_linear(kernel, None, Codes(float(codes.scale[0, 0]), 0), Codes(outputs, 0))
    found = linear(codes.numbers)
    wanted = np.clip(np.floor(np.asarray(y, np.float64) / outputs + 0.5), -128, 127)
    apart = np.abs(np.asarray(found, np.int64) - wanted)
    # float32 sums of k products may lie on the other side of a tie than the exact ones: k 2^-24 of the largest sum.
    assert apart.max() <= 1
    assert apart.mean() <= 32 * 2.0**-24 * 127 * 2 + 1e-3


def test_finished_layers_keep_their_ranges(model, tmp_path):
    settings = plan("rtn", Activations("int8-static"))
    _, once = quantized(model, settings, finished=tmp_path / "layers")
    _, again = quantized(model, settings, finished=tmp_path / "layers")
    for one, other in zip(once, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.inputs, other.inputs)
        assert one.inputs


def test_what_cannot_be_is_refused(model):
    with pytest.raises(QuantizerError, match=r"unknown activations 'int8-statik'\n  -> did you mean 'int8-static'"):
        Activations("int8-statik")
    with pytest.raises(QuantizerError, match=r"unknown range 'min' of activations"):
        Activations("int8-static", "min")
    with pytest.raises(QuantizerError, match="a static range of activations looks at what a model computes"):
        quantized(model, plan("rtn", Activations("int8-static"), calibrated=False))
    cfg, params = model
    hidden = jnp.full((1, 1, 4, 32), jnp.nan)
    block = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params["layers"])
    with pytest.raises(QuantizerError, match=r"the inputs of attn/q_proj/kernel are not finite"):
        input_states(cfg, block, hidden, Activations("int8-static", "max"))
