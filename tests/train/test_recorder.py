"""The flight recorder: figures against plain numpy, the same on every mesh, the same after a resumption."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.numerics.quantizers import absmean_ternary, adapted, llmqat, nf4, paretoq, rtn, transposed
from lowbit.train import prepare, run, sharding
from lowbit.train.recorder import DIGITS, Recorder, codes, measure, narrowest, reference, watched, watched_quantizers
from lowbit.train.run_folder import RunFolder
from lowbit.train.state import TrainState

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

EPS = float(jnp.finfo(jnp.float32).eps)
LAYERS, INPUTS, OUTPUTS = 3, 16, 8


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "recorder.jsonl").read_text().splitlines()]


def stack_of_kernels(seed):
    return np.random.default_rng(seed).normal(size=(LAYERS, INPUTS, OUTPUTS)).astype(np.float32)


QUANTIZERS = {
    "paretoq2": paretoq(2),
    "paretoq_by_layer": paretoq((1, 3, 1.58)),
    "paretoq4_groups": paretoq(4, granularity=8),
    "rtn3": rtn(3),
    "rtn4_minmax": rtn(4, symmetric=False),
    "llmqat4": llmqat(4),
    "absmean_ternary": absmean_ternary(),
}


def plain(quantizer, w, state, w_before, state_before, w0, state0):
    """The record of one layer in numpy, from what the file would hold at the three moments."""

    def held(w, state):
        return np.asarray(quantizer.encode(jnp.asarray(w), state).codes)

    now, before, start = held(w, state), held(w_before, state_before), held(w0, state0)
    return {
        "flips": np.mean(now != before),
        "moved": np.mean(now != start),
        "idle_rows": np.mean([np.array_equal(a, b) for a, b in zip(now.T, before.T, strict=True)]),
        "stuck_rows": np.mean([np.array_equal(a, b) for a, b in zip(now.T, start.T, strict=True)]),
        "dead_rows": np.mean([len(set(column)) == 1 for column in now.T.tolist()]),
        "change": np.abs(w - w0).sum() / np.abs(w0).sum(),
        "change_l2": np.linalg.norm(w - w0) / np.linalg.norm(w0),
        "levels": np.bincount(now.ravel(), minlength=len(quantizer.grid.levels)) / now.size,
    }


def layer_of(quantizer, index, w, state):
    """One layer's weights and state; dynamic quantizers make theirs of the weights."""
    own = quantizer.layer(index)
    if own.dynamic:
        return w[index], own.init(jnp.asarray(w[index]))
    return w[index], {key: value[index] for key, value in state.items() if key != "grid"}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_figures_are_those_that_numpy_counts(name):
    quantizer = QUANTIZERS[name]
    w0 = stack_of_kernels(0)
    w_before = w0 + 0.1 * stack_of_kernels(1)
    w = w_before + np.where(np.arange(OUTPUTS) % 2, 0.1, 0.0).astype(np.float32) * stack_of_kernels(2)
    w[0, :, 0] = 5.0  # codes all equal
    states = [{} if quantizer.dynamic else quantizer.init(jnp.asarray(x)) for x in (w, w_before, w0)]
    # As during a run: the scales of the start are those of its weights, later ones are learned.
    moments = [{"p": (jnp.asarray(x), state)} for x, state in zip((w, w_before, w0), states, strict=True)]
    now, before, start = moments
    by_path = {"p": quantizer}
    record = jax.jit(lambda a, b, c: measure(by_path, a, codes(by_path, b), c))(now, before, start)["p"]
    wanted_figures = {"flips", "moved", "idle_rows", "stuck_rows", "dead_rows", "clipped", "change", "change_l2"}
    assert record.keys() == wanted_figures | {"levels"} | (set() if "minmax" in name else {"drift"})
    for index in range(LAYERS):
        pairs = [layer_of(quantizer, index, x, s) for x, s in zip((w, w_before, w0), states, strict=True)]
        wanted = plain(quantizer.layer(index), *(part for pair in pairs for part in pair))
        count = len(wanted["levels"])
        np.testing.assert_array_equal(record["levels"][index, count:], 0)
        record_levels = record["levels"][index, :count]
        # Whole counts over a power of two: exact. Sums of 128 positive numbers: each rounding is at most EPS of them.
        np.testing.assert_array_equal(record_levels, wanted.pop("levels").astype(np.float32))
        for figure, value in wanted.items():
            np.testing.assert_allclose(record[figure][index], value, rtol=128 * EPS if "change" in figure else 0)
    assert record["levels"].shape == (LAYERS, 8 if name == "paretoq_by_layer" else count)


def test_a_parameter_that_is_not_stacked_is_one_layer():
    quantizer = {"embed/embedding": transposed(paretoq(2))}
    w = jnp.asarray(stack_of_kernels(0)[0])
    start = {"embed/embedding": (w, quantizer["embed/embedding"].init(w))}
    record = measure(quantizer, start, codes(quantizer, start), start)["embed/embedding"]
    assert {figure: value.shape for figure, value in record.items()}["levels"] == (1, 4)
    assert (record["flips"], record["stuck_rows"], record["change"]) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("start", ["zero", "loftq"])
def test_an_adapter_is_measured_by_what_it_adds_to_its_weights(start):
    quantizer = adapted(nf4(8), rank=2, alpha=4.0, start=start, rounds=1)
    w = jnp.asarray(stack_of_kernels(0))
    begun = quantizer.init(w)
    masters = quantizer.masters(w, begun)
    noise = np.random.default_rng(1).normal(size=(2, LAYERS, 2, OUTPUTS)).astype(np.float32)
    states = [begun | {"b": begun["b"] + step * noise[i]} for i, step in enumerate((0.1, 0.01))]
    by_path = {"p": quantizer}
    before, now = ({"p": (masters, state)} for state in states)
    record = jax.jit(lambda a, b: measure(by_path, a, codes(by_path, b), {}))(now, before)["p"]
    assert record.keys() == {"update", "update_step", "levels"}
    files = [quantizer.encode(masters, state) for state in states]
    products = [np.asarray(file.adapter.a, np.float64) @ np.asarray(file.adapter.b, np.float64) for file in files]
    base = np.asarray(dataclasses.replace(files[0], adapter=None).decode(), np.float64)
    held = np.asarray(files[0].codes)
    for index in range(LAYERS):
        norm = np.linalg.norm(base[index])
        # Sums of 128 squares in float32, of numbers with a rounding or two each.
        close = {"rtol": 128 * EPS, "atol": 4 * EPS}
        np.testing.assert_allclose(record["update"][index], np.linalg.norm(products[1][index]) / norm, **close)
        step = np.linalg.norm(products[1][index] - products[0][index]) / norm
        np.testing.assert_allclose(record["update_step"][index], step, **close)
        shares = np.bincount(held[index].ravel(), minlength=16) / held[index].size
        np.testing.assert_array_equal(record["levels"][index], shares.astype(np.float32))
    assert (np.asarray(record["update"]) > 0).all()


def test_the_narrowest_dtype_holds_every_value():
    third = np.float32(1 / 3)
    bfloat16 = np.asarray(jnp.asarray(third).astype(jnp.bfloat16).astype(jnp.float32))
    assert narrowest(np.array([bfloat16, 1e30], np.float32) * np.float32(1.0)) in (jnp.bfloat16, np.float32)
    assert narrowest(bfloat16[None]) == jnp.bfloat16
    assert narrowest(np.array([third.astype(np.float16)], np.float32)) == np.float16
    assert narrowest(np.array([third])) == np.float32
    assert narrowest(np.array([third.astype(np.float16), 1e6], np.float32)) == np.float32


SETTINGS = ("log.recorder_every_steps=2", "log.every_steps=3", "optimizer.learning_rate=0.03")


def test_every_mesh_makes_the_same_record(tiny_config, tmp_path):
    overrides = (
        ("layers/mlp/gate.*", {"method": "paretoq", "layer_bits": (2, 4), "granularity": 8}),
        ("(layers/attn/o.*|embed/.*)", {"method": "rtn"}),
    )
    experiment = prepare(tiny_config(*SETTINGS, "quant.method=float", f"quant.overrides={overrides}"))
    records = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])
        there = dataclasses.replace(experiment, mesh=mesh)
        state = there.initial_state()
        folder = RunFolder(tmp_path / str(shape))
        folder.path.mkdir()
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        with Recorder(there, folder, start=0, steps=3) as recorder:
            state, _ = recorder.watch(2, jax.jit(noisy_step, out_shardings=(places, None)), state, jnp.zeros(1))
            recorder.write(upto=1)
            assert lines(folder.path) == []
            recorder.write(upto=2)
        (line,) = lines(folder.path)
        records.append(line["parameters"])
    alone, cut = records
    assert len(alone) == 3
    assert [len(shares) for shares in alone["layers/mlp/gate_proj/kernel"]["levels"]] == [4, 16]
    assert np.shape(alone["embed/embedding"]["levels"]) == (1, 4)
    for path, figures in alone.items():
        for figure, value in figures.items():
            # Counts are exact. Sums and logarithms, in another order, may differ by one in the last digit written.
            rtol = 10.0 ** (1 - DIGITS) if figure in ("change", "change_l2", "drift") else 0
            np.testing.assert_allclose(np.hstack(cut[path][figure]), np.hstack(value), rtol=rtol)
        assert 0 < np.mean(figures["flips"]) == np.mean(figures["moved"]) < 1


def noisy_step(state, batch):
    """In place of a training step, whose gradients depend on the mesh in their last bits."""
    noise = jax.tree.map(lambda w: 0.02 * jnp.sin(1e4 * w), state.params["params"])
    params = {**state.params, "params": jax.tree.map(jnp.add, state.params["params"], noise)}
    return dataclasses.replace(state, params=params), {}


def test_a_resumed_run_writes_the_same_and_recording_changes_no_loss(tiny_config, tmp_path):
    settings = (*SETTINGS, "train.tokens=1792", "checkpoint.every_steps=3", "checkpoint.keep=9", "data.valid=")
    config = tiny_config(*settings)
    folder = run(config).run_folder
    wanted = (folder / "recorder.jsonl").read_bytes()
    rows = lines(folder)
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    changes = [row["parameters"]["layers/mlp/gate_proj/kernel"]["change"][0] for row in rows]
    assert 0 < changes[0] < changes[-1]

    # Killed when step 5 had been taken and step 4 recorded, with the checkpoint of step 3 the newest.
    (folder / "result.json").unlink()
    for step in (6, 7):
        shutil.rmtree(folder / "checkpoints" / str(step))
    (folder / "recorder.jsonl").write_bytes(b"".join(wanted.splitlines(keepends=True)[:2]))
    run(config, resume=True)
    assert (folder / "recorder.jsonl").read_bytes() == wanted

    off = run(tiny_config(*settings, "log.recorder_every_steps=0", f"run_folder={tmp_path / 'off'}")).run_folder
    assert not (off / "recorder.jsonl").exists()
    metrics = [(each / "metrics.jsonl").read_text().splitlines() for each in (folder, off)]
    assert [json.loads(line)["loss"] for line in metrics[0]] == [json.loads(line)["loss"] for line in metrics[1]]


@pytest.mark.parametrize("learned", [False, True], ids=["latent", "scales_of_the_source"])
def test_the_start_is_what_the_first_step_finds(tiny_config, learned):
    settings = () if learned else ("quant.method=onebit", "quant.scale_init=mse", "quant.latent=0.013")
    experiment = prepare(tiny_config(*settings))
    if learned:
        scales = jax.tree.map(lambda x: 2 * np.asarray(x), experiment.initial_state().variables["quant"])
        experiment = dataclasses.replace(experiment, scales=scales)
    quantizers = watched_quantizers(experiment.rules, experiment.params)
    wanted = watched(quantizers, experiment.initial_state().variables)
    got = reference(quantizers, experiment)
    assert got.keys() == wanted.keys() != set()
    for path, (w, state) in got.items():
        np.testing.assert_array_equal(w.astype(jnp.float32), wanted[path][0])
        jax.tree.map(np.testing.assert_array_equal, state, wanted[path][1])


def test_a_float_model_has_nothing_to_record(tiny_config, tmp_path):
    experiment = prepare(tiny_config(*SETTINGS, "quant.method=float"))
    with Recorder(experiment, RunFolder(tmp_path), start=0, steps=2) as recorder:
        state = TrainState(0, {}, {}, ())
        assert recorder.watch(2, lambda state, batch: (state, {}), state, jnp.zeros(1)) == (state, {})
        recorder.write(upto=2)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_interval_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"log\.recorder_every_steps=-1\n  -> give at least 0"):
        run(tiny_config("log.recorder_every_steps=-1"))
