"""Layer by layer: moments, folds, killed runs, several devices, and what comes out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.data import TokenWindows
from lowbit.errors import DataError, QuantizerError, RunFolderError
from lowbit.export import pack_model
from lowbit.export.packed import unpack_params
from lowbit.formats import write
from lowbit.models.attention import attention_received
from lowbit.models.blockwise import LINEAR_STAGES, apply_block, linear_inputs, received
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.models.transformer import Transformer
from lowbit.ptq import METHODS, Activations, Calibration, Options, Plan, assemble, draw, make_target, pack_layers
from lowbit.ptq import quantize_layers as on_all_devices
from lowbit.ptq.layers import FinishedLayers
from lowbit.ptq.moments import attention_weights, moments, output_error
from lowbit.tree import flatten, unflatten

TOKENS = np.random.default_rng(7).integers(0, 40, (16, 24)).astype(np.int32)


def in_memory(cfg, params):
    return ModelInMemory(Pretrained(cfg, params, {}))


def quantize_layers(cfg, params, settings, **more):
    """On one device: programs for eight take longer to compile."""
    return on_all_devices(in_memory(cfg, params), settings, devices=jax.devices()[:1], **more)


def plan(name, grid=None, bits=3, granularity="channel", calibrated=True, **options):
    method = METHODS[name]
    target = make_target(grid or method.grids[0], bits, granularity, method.ranges[0])
    return Plan(method, target, Options(**options), Calibration(TOKENS, 0, "noise") if calibrated else None)


def test_layers_by_themselves_are_those_of_the_model(model, block_of):
    cfg, params = model
    hidden = jnp.asarray(params["embed"]["embedding"][TOKENS[:2]])
    for index in range(cfg.num_layers):
        hidden = apply_block(cfg, block_of(params, index), hidden)
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    whole = Transformer(cfg, jnp.float32).apply(variables, jnp.asarray(TOKENS[:2]), method="hidden")
    scale = jnp.asarray(params["norm"]["scale"])[None, None]
    normed = hidden * jax.lax.rsqrt(jnp.mean(jnp.square(hidden), -1, keepdims=True) + cfg.rms_norm_eps) * scale
    np.testing.assert_allclose(normed, whole, rtol=1e-4, atol=1e-4)


def test_moments_are_those_of_the_inputs(model, block_of):
    cfg, params = model
    block = block_of(params, 0)
    hidden = jnp.asarray(params["embed"]["embedding"][TOKENS.reshape(4, 4, 24)])
    for stage in LINEAR_STAGES:
        x = np.concatenate([np.asarray(linear_inputs(cfg, block, h)[stage[0]], np.float64) for h in hidden])
        x = x.reshape(-1, x.shape[-1])
        found = moments(cfg, stage[0], block, hidden, block, hidden)
        close = {"rtol": 1e-4, "atol": 1e-5 * np.square(x).max()}
        np.testing.assert_allclose(found.gram, x.T @ x / len(x), **close)
        np.testing.assert_allclose(found.cross, found.gram, **close)
        np.testing.assert_allclose(found.mean_abs, np.abs(x).mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(found.max_abs, np.abs(x).max(axis=0), rtol=1e-4)


def test_attention_received_is_that_of_the_definition():
    rng = np.random.default_rng(3)
    q, k = rng.standard_normal((2, 6, 4, 8)), rng.standard_normal((2, 6, 2, 8))
    expected = np.zeros((2, 6))
    for row, query, head in np.ndindex(2, 6, 4):
        scores = np.exp(k[row, : query + 1, head // 2] @ q[row, query, head] / np.sqrt(8))  # two heads read one key
        expected[row, : query + 1] += scores / scores.sum() / 4
    found = attention_received(jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 6.0, rtol=1e-5)


def test_tokens_count_by_the_attention_that_they_get(model, block_of):
    cfg, params = model
    block = block_of(params, 0)
    hidden = jnp.asarray(params["embed"]["embedding"][TOKENS.reshape(4, 4, 24)])
    weights = attention_weights(cfg, block, hidden)
    roots = np.sqrt([received(cfg, block, h) for h in hidden])
    np.testing.assert_allclose(weights, roots / roots.mean(), rtol=1e-5)
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)
    path = "attn/v_proj/kernel"
    x = np.stack([np.asarray(linear_inputs(cfg, block, h)[path], np.float64) for h in hidden]).reshape(-1, 32)
    a = np.asarray(weights, np.float64).reshape(-1, 1)
    found = moments(cfg, path, block, hidden, block, hidden, weights)
    close = {"rtol": 1e-4, "atol": 1e-5 * np.square(x).max()}
    np.testing.assert_allclose(found.gram, (a * x).T @ x / len(x), **close)
    np.testing.assert_allclose(found.cross, found.gram, **close)
    np.testing.assert_allclose(found.mean_abs, (a * np.abs(x)).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.max_abs, np.abs(x).max(axis=0), rtol=1e-4)


def test_what_all_tokens_attend_to_errs_less_where_attention_counts(model, block_of):
    cfg, params = model
    tokens = np.where(np.arange(24) == 0, 0, 1 + TOKENS % 39)  # every query sees the first, which stands nowhere else
    hidden = jnp.asarray(params["embed"]["embedding"][tokens])[None]
    block, path = block_of(params, 0), "attn/v_proj/kernel"
    w, first = block["attn"]["v_proj"]["kernel"], linear_inputs(cfg, block, hidden[0])[path][0, :1]
    target = plan("gptq", bits=2).target
    weights = {"even": None, "attention": attention_weights(cfg, block, hidden)}
    errors = {}
    for name, weight in weights.items():
        seen = moments(cfg, path, block, hidden, weights=weight)
        w_hat = METHODS["gptq"].round(path, w, seen, target, Options()).w_hat
        errors[name] = float(jnp.sum(output_error(first.T @ first, w - w_hat)))
    # Even attention gives the first 1/1 + ... + 1/24 = 3.8 times what tokens get on average: the root of it counts.
    assert float(weights["attention"][0, :, 0].mean()) > 1.5
    assert errors["attention"] < 0.9 * errors["even"]


@pytest.mark.parametrize("name", ["smoothquant", "awq"])
@pytest.mark.parametrize("which", ["model", "multi_head_model"])
def test_folded_layers_compute_the_same(name, which, request, block_of):
    cfg, params = request.getfixturevalue(which)
    block = block_of(params, 1)
    hidden = jnp.asarray(params["embed"]["embedding"][TOKENS.reshape(4, 4, 24)])
    seen = {stage[0]: moments(cfg, stage[0], block, hidden) for stage in LINEAR_STAGES}
    target = make_target("integer", 3, "channel", "max")
    targets = dict.fromkeys(flatten(block), target)
    folded = METHODS[name].fold(flatten(block), seen, targets, Options(), which == "multi_head_model")
    changed = {path for path, leaf in flatten(block).items() if not jnp.array_equal(leaf, folded[path])}
    assert {"attn_norm/scale", "mlp_norm/scale", "attn/q_proj/kernel"} <= changed
    assert ("attn/o_proj/kernel" in changed) == (name == "awq" and which == "multi_head_model")
    before, after = apply_block(cfg, block, hidden[0]), apply_block(cfg, unflatten(folded), hidden[0])
    # Two more roundings a weight and a product: a few units in the last place of the largest activation.
    np.testing.assert_allclose(after, before, atol=64 * 2.0**-24 * float(jnp.abs(before).max()))


def test_later_kernels_see_what_earlier_ones_became(model, block_of):
    cfg, params = model
    layers = quantize_layers(cfg, params, plan("gptq", bits=2))
    target = plan("gptq", bits=2).target
    hidden = jnp.asarray(params["embed"]["embedding"][TOKENS])[None]
    decoded = jax.tree.map(jnp.asarray, unflatten(layers[0].decoded(target)))
    hidden = jnp.stack([apply_block(cfg, decoded, h) for h in hidden])
    block = flatten(block_of(params, 1))
    now = layers[1].decoded(target)
    for path in LINEAR_STAGES[0]:
        block[path] = jnp.asarray(now[path])
    seen = moments(cfg, "attn/o_proj/kernel", unflatten(block), hidden)
    again = METHODS["gptq"].round("attn/o_proj/kernel", block["attn/o_proj/kernel"], seen, target, Options())
    apart = np.asarray(again.w_hat) != now["attn/o_proj/kernel"]
    # Sums over batches may have another order: a tie may fall to the other side, and its output follows.
    assert apart.any(axis=0).mean() < 0.1


def test_devices_share_the_rows(model):
    cfg, params = model
    assert len(jax.devices()) == 8
    settings = dataclasses.replace(plan("smoothquant", bits=8), activations=Activations("int8-static", "max"))
    all_devices = on_all_devices(in_memory(cfg, params), settings)
    for ours, theirs in zip(all_devices, quantize_layers(cfg, params, settings), strict=True):
        for path, leaf in ours.leaves.items():
            # Maxima of activations that went through at most two layers of sums in another order.
            np.testing.assert_allclose(leaf, theirs.leaves[path], rtol=1e-4, atol=1e-5, err_msg=path)
        for path, state in ours.inputs.items():
            np.testing.assert_allclose(state["scale"], theirs.inputs[path]["scale"], rtol=1e-4, err_msg=path)
        assert len(ours.inputs) == 7


def test_a_killed_run_goes_on_to_the_same_result(model, tmp_path):
    cfg, params = model
    whole = quantize_layers(cfg, params, plan("gptq"))

    def kill(index, seconds):
        if index == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_layers(cfg, params, plan("gptq"), finished=tmp_path / "layers", origin="m", progress=kill)
    assert [path.name for path in sorted(tmp_path.glob("layers/*.npz"))] == ["layer_0000.npz"]
    untouched = (tmp_path / "layers" / "layer_0000.npz").stat().st_mtime_ns
    resumed = quantize_layers(cfg, params, plan("gptq"), finished=tmp_path / "layers", origin="m")
    assert (tmp_path / "layers" / "layer_0000.npz").stat().st_mtime_ns == untouched
    for ours, theirs in zip(resumed, whole, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours.leaves, theirs.leaves)
        assert {k: v.error for k, v in ours.kernels.items()} == {k: v.error for k, v in theirs.kernels.items()}
    refused = pytest.raises(RunFolderError, match=r"holds layers of another model .* quantized with other settings")
    with refused:
        quantize_layers(cfg, params, plan("gptq", bits=2), finished=tmp_path / "layers", origin="m")
    trained_on = jax.tree.map(lambda leaf: leaf + np.float32(1e-3), params)
    with refused:
        quantize_layers(cfg, trained_on, plan("gptq"), finished=tmp_path / "layers", origin="m")


def test_settings_that_finished_no_layer_bind_nobody(model, tmp_path):
    cfg, params = model
    folder = tmp_path / "layers"
    FinishedLayers(folder, {"weight_rate": 1e30}, 1)
    assert len(list(quantize_layers(cfg, params, plan("rtn"), finished=folder, origin="m"))) == cfg.num_layers


def test_a_disk_that_fills_up_is_explained(model, tmp_path):
    cfg, params = model
    (tmp_path / "layers" / "layer_0000.npz").mkdir(parents=True)  # where no file can be put
    with pytest.raises(RunFolderError, match=r"layers/layer_0000\.npz cannot be written: Is a directory"):
        quantize_layers(cfg, params, plan("rtn"), finished=tmp_path / "layers", origin="m")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_makes_a_model_that_a_file_holds(name, model, tmp_path):
    cfg, params = model
    grid = METHODS[name].grids[0]
    bits = 2 if grid in ("free", "vectors") else 4
    settings = plan(name, bits=bits, granularity=8, calibrated=METHODS[name].needs_data)
    layers = quantize_layers(cfg, params, settings)
    result = assemble(in_memory(cfg, params), layers, settings.target)
    packed, summary = pack_layers(in_memory(cfg, params), layers, settings.target, {"a": 1})
    whole = pack_model(cfg, result.params, result.rules, result.state, {}, {"a": 1})
    write(tmp_path / "one", packed)
    write(tmp_path / "whole", whole)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (summary.bits, summary.model_bits) == (result.summary.bits, result.summary.model_bits)
    decoded = flatten(result.decoded())
    for path, leaf in unpack_params(cfg, packed).items():
        np.testing.assert_array_equal(leaf, decoded[path], err_msg=path)
    assert summary.packable == (grid != "vectors" and name != "int8_outliers")
    assert bits <= summary.bits
    # Tables and 16-bit rows outweigh matrices as small as these.
    assert summary.bits < summary.model_bits or not summary.packable
    errors = np.asarray(list(summary.errors.values()))
    assert errors.shape == (7, 2)
    assert (errors < 0.5).all()


def test_sequences_are_drawn_by_a_seed():
    windows = TokenWindows((np.arange(1000, dtype=np.uint16),), 24)
    first, again, other = (draw(windows, 8, seed, "x") for seed in (0, 0, 1))
    assert first.tokens.shape == (8, 24)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert first.record()["sha256"] != other.record()["sha256"]
    assert {"sequences": 8, "length": 24, "seed": 1, "source": "x"}.items() <= other.record().items()
    with pytest.raises(DataError, match="99 calibration sequences were asked for, and x has 41 of 24 tokens"):
        draw(windows, 99, 0, "x")


def test_calibration_is_checked_before_any_work(model):
    cfg, params = model
    few = Calibration(TOKENS[:1], 0, "x")
    with pytest.raises(DataError, match="1 x 24 = 24 calibration tokens are too few for a kernel of 48 inputs"):
        quantize_layers(cfg, params, _with(plan("gptq"), few))
    long = Calibration(np.zeros((2, 33), np.int32), 0, "x")
    with pytest.raises(DataError, match="calibration sequences of 33 tokens, and the model has 32 positions"):
        quantize_layers(cfg, params, _with(plan("gptq"), long))
    with pytest.raises(QuantizerError, match="gptq looks at what a model computes, and there is no calibration"):
        quantize_layers(cfg, params, _with(plan("gptq"), None))


def _with(settings, calibration):
    return Plan(settings.method, settings.target, settings.options, calibration)


def test_a_hessian_that_cannot_be_factored_is_named(model):
    cfg, params = model
    same = Calibration(np.zeros((4, 24), np.int32), 0, "zeros")
    with pytest.raises(QuantizerError, match=r"inputs of attn/q_proj/kernel of layer 0 is singular at damping 0"):
        quantize_layers(cfg, params, _with(plan("gptq", damping=0.0), same))
