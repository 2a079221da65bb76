"""`quantize`: from a float model to a packed file, to a run that training goes on from, and what it refuses."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lowbit import config as configs
from lowbit.cli import quantize
from lowbit.locks import sole_writer
from lowbit.models.layerwise import ModelInMemory
from lowbit.train import load_trained
from lowbit.train.setup import prepare
from lowbit.train.sources import load_masters
from lowbit.tree import fake_quant, flatten, unflatten

CALIBRATION = ("--sequences", 4, "--length", 24)


def settings(train_arguments, folder, *more):
    """The config of a run that starts from a folder."""
    _, spec, *overrides = train_arguments(folder.parent / "next")
    return configs.load(spec, [*overrides, f"--config.model.source={folder}", *more])


@pytest.fixture(scope="module")
def quantized(float_model, text, tmp_path_factory):
    """A run folder at 2 bits by GPTQ, and what was printed."""
    from lowbit.cli import main

    folder = tmp_path_factory.mktemp("quantized") / "gptq2"
    arguments = ["quantize", float_model, "--method", "gptq", "--grid", "paretoq", "--bits", 2, "--data", text]
    assert main([str(a) for a in (*arguments, *CALIBRATION, "--eval", text, "--windows", 4, "-o", folder)]) == 0
    return folder


def test_record_says_how_it_was_made(quantized, float_model, text):
    record = json.loads((quantized / "quantization.json").read_text())
    assert (record["source"], record["method"], record["grid"], record["bits"]) == (
        str(float_model),
        "gptq",
        "paretoq",
        2.0,
    )
    assert record["calibration"]["sequences"] == 4
    assert record["calibration"]["source"] == str(text)
    usual = {"damping": 0.01, "act_order": False, "static_groups": False, "token_weights": "even"}
    assert record["options"] == usual
    # Codes of 2 bits, and a float16 scale for the 32 or 48 inputs of a channel.
    assert 2 + 16 / 48 < record["bits_per_weight"] < 2 + 16 / 32
    assert record["peak_host_bytes"] > 1e6
    assert record["after"][str(text)]["nll"] > 0
    assert record["after"].keys() == record["before"].keys()
    assert not list(quantized.parent.glob(".*"))


def test_a_folder_exports_verifies_and_equals_the_packed_file(quantized, float_model, text, lowbit, tmp_path):
    file = tmp_path / "exported.lowbit"
    assert lowbit("export", quantized, "-o", file).status == 0
    done = lowbit("verify", file)
    assert done.status == 0, done.out + done.err
    direct = tmp_path / "direct.lowbit"
    arguments = ("--method", "gptq", "--grid", "paretoq", "--bits", 2, "--data", text, *CALIBRATION)
    done = lowbit("quantize", float_model, *arguments, "-o", direct)
    assert done.status == 0, done.err
    assert "layer 2 of 2" in done.err
    assert (tmp_path / "direct.lowbit.json").is_file()
    done = lowbit("verify", direct, "--against", quantized)
    assert "all equal bit for bit" in done.out


@pytest.mark.parametrize("activations", ["int8-mixed", pytest.param("int8-dynamic", marks=pytest.mark.slow)])
def test_eight_bit_inputs_are_what_eval_runs(activations, float_model, text, lowbit, tmp_path):
    arguments = ("--method", "smoothquant", "--bits", 8, "--data", text, *CALIBRATION, "--activations", activations)
    nats = {}
    for output in (tmp_path / "w8a8.lowbit", tmp_path / "w8a8"):
        done = lowbit("quantize", float_model, *arguments, "--eval", text, "--windows", 2, "-o", output)
        assert done.status == 0, done.err
        assert "of host memory at most (calibration" in done.err
        place = output / "quantization.json" if output.is_dir() else tmp_path / "w8a8.lowbit.json"
        record = json.loads(place.read_text())
        assert record["activations"] == {"name": activations, "range": "max", "cache": None}
        evaluated = tmp_path / f"{output.name}-eval.json"
        done = lowbit("eval", output, "--data", text, "--windows", 2, "-o", evaluated)
        assert done.status == 0, done.err
        nats[output.name] = json.loads(evaluated.read_text())["texts"][str(text)]["nll"]
        assert nats[output.name] == pytest.approx(record["after"][str(text)]["nll"], rel=1e-6)
        assert nats[output.name] != pytest.approx(record["before"][str(text)]["nll"], rel=1e-6)
    # One is folded and rounded as the other: sums in another order alone.
    assert nats["w8a8"] == pytest.approx(nats["w8a8.lowbit"], rel=1e-5)
    by_integers = tmp_path / "integers.json"
    done = lowbit(
        *("eval", tmp_path / "w8a8.lowbit", "--backend", "integer"),
        *("--data", text, "--windows", 2, "-o", by_integers),
    )
    assert done.status == 0, done.err
    found = json.loads(by_integers.read_text())
    assert found["backend"] == "integer"
    # Outputs of 16 bits instead of float32: far less than inputs of 8 bits have changed.
    assert found["texts"][str(text)]["nll"] == pytest.approx(nats["w8a8.lowbit"], rel=1e-2)


def test_a_host_without_the_memory_is_sent_away_before_any_work(float_model, lowbit, tmp_path, monkeypatch):
    from lowbit.cli import quantize

    monkeypatch.setattr(quantize, "available_host_memory", lambda: 10**8)
    done = lowbit("quantize", float_model, "--method", "rtn", "--bits", 3, "-o", tmp_path / "out.lowbit")
    assert done.status == 2
    assert "and 100.0 MB are free" in done.err
    assert not list(tmp_path.iterdir())


def test_training_starts_where_the_quantized_model_stands(quantized, train_arguments):
    run = load_trained(quantized)
    start = prepare(settings(train_arguments, quantized, "--config.model.source_scales=true")).initial_state()
    for name in ("params", "quant"):
        theirs = {"params": run.params, "quant": run.state["quant"]}[name]
        for path, leaf in flatten(start.variables[name]).items():
            np.testing.assert_array_equal(leaf, flatten(theirs)[path], err_msg=path)
    fresh = prepare(settings(train_arguments, quantized)).initial_state()
    path = "layers/mlp/down_proj/kernel/scale"
    assert not np.array_equal(flatten(fresh.variables["quant"])[path], flatten(run.state["quant"])[path])
    # The first forward pass is that of the quantized model: each rounded weight is a level of it.
    decoded = flatten(fake_quant(run.rules, run.params, run.state))["layers/mlp/down_proj/kernel"]
    units = np.asarray(decoded) / np.asarray(flatten(run.state["quant"])[path]).astype(np.float16).astype(np.float32)
    assert set(np.unique(np.round(units, 3))) <= {-0.75, -0.25, 0.25, 0.75}


def test_scales_fit_where_overrides_come_to_the_same_grid(quantized, train_arguments):
    from lowbit.errors import ConfigError
    from lowbit.train.sources import load_scales

    config = settings(train_arguments, quantized, "--config.model.source_scales=true", "--config.quant.bits=4")
    config.quant.overrides = (("layers/attn/.*_proj/kernel", {"bits": 2.0}), ("layers/mlp/.*_proj/kernel", {"bits": 2}))
    assert load_scales(config)["quant"]
    config.quant.overrides = config.quant.overrides[:1]
    with pytest.raises(ConfigError, match=r"are for quant.bits=2.0 \(here 4.0\), quant.overrides="):
        load_scales(config)


def test_a_kernel_of_zeros_has_no_relative_error(lowbit, float_model, tmp_path, monkeypatch):
    def with_zeros(source):
        loaded = load_masters(source)
        path = "layers/attn/o_proj/kernel"
        flat = flatten(loaded.params)
        return ModelInMemory(loaded._replace(params=unflatten(flat | {path: np.zeros_like(flat[path])})))

    monkeypatch.setattr(quantize, "open_masters", with_zeros)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on a system without it
    file = tmp_path / "zeros.lowbit"
    done = lowbit("quantize", float_model, "--method", "rtn", "--bits", 3, "-o", file)
    assert done.status == 0, done.err
    assert "peak memory" not in done.out
    record = json.loads((tmp_path / "zeros.lowbit.json").read_text())
    assert record["relative_errors"]["attn/o_proj/kernel"] == [None, None]
    assert "peak_host_bytes" not in record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--config.quant.bits=4",), r"the scales of .* are for quant.bits=2.0 \(here 4.0\)"),
        (("--config.model.rotate=true",), "model.rotate turns weights, and no scale of the source fits them then"),
        (("--config.model.source=elsewhere/model",), "model.source 'elsewhere/model' is no run, whose scales"),
    ],
)
def test_scales_that_do_not_fit_are_refused(quantized, train_arguments, changes, message):
    from lowbit.errors import ConfigError
    from lowbit.train.sources import load_scales

    config = settings(train_arguments, quantized, "--config.model.source_scales=true", *changes)
    with pytest.raises(ConfigError, match=message):
        load_scales(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "gptq", "--bits", 3), "--method gptq needs calibration data"),
        (("--method", "rtn", "--bits", 3, "--data", "x.txt"), "--method rtn looks at no data"),
        (("--method", "gtpq", "--bits", 3), "unknown method 'gtpq'\n  -> did you mean 'gptq'?"),
        (("--method", "rtn", "--bits", 3, "--length", 64), "--method rtn looks at no data\n  -> leave out --length"),
        (("--method", "rtn", "--bits", 3, "--sequences", 8), "--method rtn looks at no data"),
        (("--method", "rtn", "--bits", 3, "--windows", 8), "--windows is for --eval"),
        (("--method", "rtn", "--bits", 3, "--damping", "0.1"), "--method rtn has no choice of --damping"),
        (("--method", "hqq", "--bits", 3, "--token-weights", "even"), "--method hqq has no choice of --token-weights"),
        (("--method", "gptq", "--bits", 3, "--epochs", 3), "--method gptq has no choice of --epochs"),
        (("--method", "rtn", "--bits", 3, "--granularity", 5), "a group of 5 does not divide"),
        (("--method", "hqq", "--bits", 3, "--overwrite"), "--overwrite replaces packed files"),
        (("--method", "hqq", "--bits", 3), "training has no quantizer with the grid 'float_zero'"),
        (("--method", "kmeans", "--bits", "many"), "--bits is a float, which 'many' is not"),
        (("--method", "rtn", "--bits", 8, "--activations", "int8"), "unknown activations 'int8'"),
        (
            ("--method", "rtn", "--bits", 8, "--activations", "int8-static"),
            "--activations int8-static needs calibration data",
        ),
        (
            ("--method", "rtn", "--bits", 8, "--activations", "int8-dynamic", "--activation-range", "max"),
            "--activations int8-dynamic has no choice of --activation-range",
        ),
        (("--method", "rtn", "--bits", 8, "--activation-range", "max"), "add --activations int8-static"),
    ],
)
def test_mistakes_are_refused_before_any_work(lowbit, float_model, tmp_path, arguments, message):
    done = lowbit("quantize", float_model, *arguments, "-o", tmp_path / "out")
    assert done.status == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_share_half_quantized_layers(lowbit, float_model, tmp_path):
    (tmp_path / ".out.lowbit.layers").mkdir()
    with sole_writer(tmp_path / ".out.lowbit.layers"):
        done = lowbit("quantize", float_model, "--method", "rtn", "--bits", 3, "-o", tmp_path / "out.lowbit")
    assert done.status == 2
    assert ".out.lowbit.layers is being written by process" in done.err


def test_a_place_for_layers_that_cannot_be_made(lowbit, float_model, tmp_path):
    (tmp_path / ".out.lowbit.layers").write_text("in the way")
    done = lowbit("quantize", float_model, "--method", "rtn", "--bits", 3, "-o", tmp_path / "out.lowbit")
    assert done.status == 2
    assert ".out.lowbit.layers, for layers that are finished, cannot be made: File exists" in done.err


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch, system, unit):
    monkeypatch.setattr(sys, "platform", system)
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=7))
    monkeypatch.setitem(sys.modules, "resource", usage)
    assert quantize._memory()["peak_host_bytes"] == 7 * unit


def test_too_few_tokens_are_refused(lowbit, float_model, text, tmp_path):
    arguments = ("--method", "gptq", "--bits", 3, "--data", text, "--sequences", 1, "--length", 24)
    done = lowbit("quantize", float_model, *arguments, "-o", tmp_path / "out.lowbit")
    assert "1 x 24 = 24 calibration tokens are too few for a kernel of 48 inputs" in done.err
    assert not list(tmp_path.iterdir())
