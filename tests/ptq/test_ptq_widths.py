"""Kernels of widths of their own: in the file, in a run, and in the messages where they do not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from lowbit import config as configs
from lowbit.errors import QuantizerError
from lowbit.export import pack_model, verify
from lowbit.export.packed import unpack_params
from lowbit.formats import summarize
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Calibration, Options, Plan, assemble, make_target, pack_layers, quantize_layers
from lowbit.ptq import write_run as write
from lowbit.ptq.widths import Widths
from lowbit.train import load_trained
from lowbit.tree import flatten

PATHS = [path for stage in LINEAR_STAGES for path in stage]
MIXED = Widths({path: (2.0 + i % 3, 4.0 - i % 2) for i, path in enumerate(PATHS)})
TOKENS = np.random.default_rng(7).integers(0, 40, (8, 24)).astype(np.int32)


def plan(name, grid=None, widths=MIXED, calibrated=True):
    method = METHODS[name]
    target = make_target(grid or method.grids[0], 4, "channel", method.ranges[0])
    calibration = Calibration(TOKENS, 0, "noise") if calibrated else None
    return Plan(method, target, Options(), calibration, widths=widths)


def quantized(model, settings, **more):
    cfg, params = model
    source = ModelInMemory(Pretrained(cfg, params, {}))
    return source, quantize_layers(source, settings, devices=jax.devices()[:1], **more)


def test_every_kernel_has_its_width_in_the_file(model):
    settings = plan("awq", "integer")
    source, layers = quantized(model, settings)
    result = assemble(source, layers, settings.target)
    packed, summary = pack_layers(source, layers, settings.target, {})
    grids = {tensor: packed.tensors[tensor].grid for tensor in packed.tensors if "_proj.kernel" in tensor}
    assert grids == {
        f"layers.{i}.{path.replace('/', '.')}": f"int{MIXED.at(i, path):g}" for path in PATHS for i in range(2)
    }
    again = pack_model(model[0], result.params, result.rules, result.state, {}, {})
    assert summarize(again).rows == summarize(packed).rows
    assert summary.bits == pytest.approx(summarize(packed).quantized_bits)  # rows of 32 and 48 codes are whole bytes
    decoded = flatten(result.decoded())
    for path, leaf in unpack_params(model[0], packed).items():
        np.testing.assert_array_equal(leaf, decoded[path], err_msg=path)


@pytest.mark.parametrize("grid", ["nf4", "zero_point"])
def test_scales_that_are_quantized_once_more_are_codes_in_file_and_run(model, tmp_path, grid):
    target = make_target(grid, 4, 16, "max", doubled=True)
    settings = Plan(METHODS["rtn"], target, Options(), None)
    source, layers = quantized(model, settings)
    result = assemble(source, layers, target)
    packed, summary = pack_layers(source, layers, target, {})
    kernels = [tensor for name, tensor in packed.tensors.items() if "_proj.kernel" in name]
    assert all(tensor.coded_scale is not None for tensor in kernels)
    assert summary.bits == pytest.approx(summarize(packed).quantized_bits)
    assert summary.bits < quantized_bits(model, dataclasses.replace(settings, target=make_target(grid, 4, 16, "max")))
    config = configs.base()
    with config.unlocked():
        config.quant.update(settings.section())
    write(result, tmp_path / "run", config.lock(), {})
    run = load_trained(tmp_path / "run")
    assert run.config.quant.double_quant
    found = verify(packed, run.cfg, run.params, run.rules, run.state, TOKENS[:1])
    assert found.ok, found
    decoded = flatten(result.decoded())
    for path, leaf in unpack_params(model[0], packed).items():
        np.testing.assert_array_equal(leaf, decoded[path], err_msg=path)


def quantized_bits(model, settings):
    source, layers = quantized(model, settings)
    return pack_layers(source, layers, settings.target, {})[1].bits


def test_one_width_for_all_is_what_the_target_says(model):
    alike = Widths(dict.fromkeys(PATHS, (3.0, 3.0)))
    one = dataclasses.replace(
        plan("rtn", widths=None, calibrated=False), target=make_target("integer", 3, "channel", "mse")
    )
    _, ours = quantized(model, plan("rtn", widths=alike, calibrated=False))
    _, theirs = quantized(model, one)
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.decoded(one.target), b.decoded(one.target))


def test_finished_layers_keep_their_widths(model, tmp_path):
    settings = plan("rtn", calibrated=False)
    _source, kept = quantized(model, settings, finished=tmp_path / "layers")
    _, fresh = quantized(model, settings)
    for a, b in zip(kept, fresh, strict=True):
        assert {path: kernel.width for path, kernel in a.kernels.items()} == {
            path: kernel.width for path, kernel in b.kernels.items()
        }
        jax.tree.map(np.testing.assert_array_equal, a.decoded(settings.target), b.decoded(settings.target))


def test_a_run_holds_them_and_is_the_packed_file(model, tmp_path):
    settings = plan("gptq", "paretoq")
    source, layers = quantized(model, settings)
    result = assemble(source, layers, settings.target)
    config = configs.base()
    with config.unlocked():
        config.quant.update(settings.section())
    write(result, tmp_path / "run", config.lock(), {})
    run = load_trained(tmp_path / "run")
    overrides = dict(run.config.quant.overrides)
    assert overrides["layers/attn/q_proj/kernel"]["layer_bits"] == (2.0, 4.0)
    assert overrides["layers/attn/k_proj/kernel"]["bits"] == 3.0
    packed, _ = pack_layers(source, layers, settings.target, {})
    found = verify(packed, run.cfg, run.params, run.rules, run.state, TOKENS[:1])
    assert found.ok, found


def test_what_training_cannot_hold_is_refused():
    with pytest.raises(QuantizerError, match=r"no quantizer with the grid 'power'"):
        Widths(dict.fromkeys(PATHS, (4.0, 4.0))).overrides(make_target("power", 4, 64, "max"))
    with pytest.raises(
        QuantizerError, match=r"the layers of attn/q_proj/kernel differ in width, and training has only"
    ):
        MIXED.overrides(make_target("integer", 4, "channel", "mse"))


def test_widths_of_another_model_are_refused(model):
    short = Widths(dict.fromkeys(PATHS, (4.0,)))
    with pytest.raises(QuantizerError, match="widths are given for 1 layers, and the model has 2"):
        quantized(model, plan("rtn", widths=short, calibrated=False))
    with pytest.raises(QuantizerError, match="for other kernels than a layer has: see attn/q_proj/kernel"):
        quantized(model, plan("rtn", widths=Widths(dict.fromkeys(PATHS[1:], (4.0, 4.0))), calibrated=False))
    odd = Widths(dict.fromkeys(PATHS, (4.0, 5.0)))
    with pytest.raises(QuantizerError, match="the grid 'paretoq' has no 5 bits"):
        quantized(model, plan("rtn", "paretoq", widths=odd, calibrated=False))
