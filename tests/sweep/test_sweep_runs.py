"""Sweeps that train: equal to single runs, resumed after a kill, and going on where a point breaks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lowbit.config import to_json
from lowbit.errors import ConfigError, DataError, LockedError, NonFiniteError, RuleError, RunFolderError
from lowbit.locks import sole_writer
from lowbit.sweep import Sweep, driver, make_points, product, run_sweep
from lowbit.sweep.lanes import Alone, Together
from lowbit.train.setup import prepare
from lowbit.tree import flatten

FEW = (
    {"quant.bits": 1, "optimizer.learning_rate": 1e-2, "seed": 0},
    {"quant.bits": 4, "optimizer.learning_rate": 3e-3, "seed": 1},
)
"""Points that differ in everything that a program takes as data."""


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder):
    return [(row["step"], row["tokens"], row["loss"], row["grad_norm"], row["lr"]) for row in rows(folder)]


def summary(folder):
    return json.loads((folder / "sweep.json").read_text())


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """Every point as a run of its own."""
    folder = tmp_path_factory.mktemp("sweeps") / "alone"
    assert run_sweep(Sweep(base, FEW, points_at_once=0), folder)
    return folder


def test_a_run_of_its_own_is_what_train_makes(alone):
    for point in summary(alone)["points"]:
        assert point["together"] == 0
        assert (alone / "points" / point["name"] / "checkpoints" / "4").is_dir()


def test_points_of_one_program_are_single_runs_bit_for_bit(base, alone, tmp_path):
    folder = tmp_path / "sweep"
    assert run_sweep(Sweep(base, FEW, points_at_once=1), folder)
    found = summary(folder)
    assert found["count"] == 2
    assert found["device_count"] == 8
    for point, single in zip(found["points"], summary(alone)["points"], strict=True):
        assert point["together"] == 1
        for key in ("name", "settings", "evaluations", "bits_per_weight", "bits_per_weight_model", "tokens"):
            assert point[key] == single[key]
        assert numbers(folder / "points" / point["name"]) == numbers(alone / "points" / point["name"])
        assert not (folder / "points" / point["name"] / "checkpoints").exists()


def test_points_side_by_side_are_single_runs_as_closely_as_float32_lets_them(base, alone, tmp_path):
    folder = tmp_path / "sweep"
    assert run_sweep(Sweep(base, FEW, points_at_once=8), folder)
    # A loss is a sum over 256 tokens and 64 logits; each term may be rounded the other way.
    rtol = (256 + 64) * 2.0**-24
    for point, single in zip(summary(folder)["points"], summary(alone)["points"], strict=True):
        assert point["together"] == 2
        here, there = (np.array(numbers(f / "points" / point["name"])) for f in (folder, alone))
        np.testing.assert_allclose(here, there, rtol=rtol)
        np.testing.assert_allclose(
            point["evaluations"]["tokens"]["nll"], single["evaluations"]["tokens"]["nll"], rtol=rtol
        )
        assert point["bits_per_weight"] == single["bits_per_weight"]


@pytest.fixture(scope="module")
def taught(alone):
    """Overrides: points that start with masters and scales of a run at 1 bit, and learn from it."""
    source = alone / "points" / summary(alone)["points"][0]["name"]
    distill = (f"distill.teacher={source}", "distill.weight=0.5")
    return (f"model.source={source}", "model.source_scales=true", "quant.bits=1", *distill)


def test_lanes_start_with_the_scales_and_the_teacher_of_a_run(base, taught, tmp_path):
    (point,) = make_points(Sweep(base, ({"seed": 0},)), tmp_path, taught)
    experiment = prepare(point.config)
    want = experiment.initial_state()
    jax.tree.map(np.testing.assert_array_equal, Alone(experiment).start([experiment]), want)
    together = Together(experiment, 2).start([experiment, experiment])
    for path, leaf in flatten(want.params["quant"]).items():
        np.testing.assert_array_equal(flatten(together.params["quant"])[path], np.stack([leaf, leaf]), err_msg=path)
    fresh = dataclasses.replace(experiment, scales=None).initial_state()
    path = "layers/mlp/down_proj/kernel/scale"
    assert not np.array_equal(*(flatten(state.params["quant"])[path] for state in (want, fresh)))


@pytest.mark.parametrize("kind", ["alone", "together"])
def test_every_lane_has_the_ranges_of_its_own_calibration(base, tmp_path, kind):
    static = ("activations.bits=8", "activations.range=static", "activations.granularity=tensor")
    points = make_points(Sweep(base, product({"seed": (0, 1)})), tmp_path, static)
    experiments = [prepare(point.config) for point in points]
    if kind == "alone":
        lanes = Alone(experiments[0])
        grids = [lanes.start([experiment]).constants["grid"] for experiment in experiments]
    else:
        both = Together(experiments[0], 2).start(experiments).constants["grid"]
        grids = [jax.tree.map(lambda leaf, lane=lane: leaf[lane], both) for lane in (0, 1)]
    found = [np.asarray(flatten(grid)["layers/mlp/down_proj/input/scale"]) for grid in grids]
    for scale, experiment in zip(found, experiments, strict=True):
        np.testing.assert_array_equal(scale, experiment.ranges["layers/mlp/down_proj"]["scale"])
    assert not np.array_equal(*found)


@pytest.mark.slow
def test_points_log_what_their_loss_is_made_of(base, taught, tmp_path):
    folder = tmp_path / "sweep"
    assert run_sweep(Sweep(base, product({"seed": (0, 1)}), taught, points_at_once=2), folder)
    for point in summary(folder)["points"]:
        for row in rows(folder / "points" / point["name"]):
            # In float32: three roundings of the terms and one of the sum.
            parts = 0.5 * row["cross_entropy"] + 0.5 * row["divergence"]
            np.testing.assert_allclose(parts, row["loss"], rtol=4 * 2.0**-24)


def test_a_run_of_its_own_that_breaks_is_recorded(base, tmp_path, monkeypatch):
    def breaks(config, *, resume):
        Path(config.run_folder).mkdir(parents=True)
        raise NonFiniteError("step 2: loss nan", "lower the rate")

    monkeypatch.setattr(driver, "run", breaks)
    assert run_sweep(Sweep(base, FEW, points_at_once=0), tmp_path / "sweep")
    assert [point["error"] for point in summary(tmp_path / "sweep")["points"]] == ["step 2: loss nan"] * 2


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_point_that_breaks_is_recorded_and_the_others_go_on(base, tmp_path, at_once, monkeypatch):
    folder = tmp_path / "sweep"
    sweep = Sweep(base, (FEW[0] | {"optimizer.learning_rate": 1e38}, FEW[1]), points_at_once=at_once)
    assert run_sweep(sweep, folder)
    broken, well = summary(folder)["points"]
    assert broken["name"] == "bits=1,learning_rate=1e+38,seed=0"
    assert broken["error"].startswith("step ")
    assert broken["evaluations"] is None
    assert well["error"] is None
    assert np.isfinite(well["evaluations"]["tokens"]["nll"])
    # Broken or not, a point is finished.
    monkeypatch.setattr(driver, "train_batch", None)
    monkeypatch.setattr(driver, "run", None)
    assert run_sweep(sweep, folder, resume=True)


SWEEP = """
import json, sys
from pathlib import Path
from lowbit.sweep import Sweep, run_sweep
run_sweep(Sweep(sys.argv[1], json.loads(sys.argv[3]), points_at_once=1), Path(sys.argv[2]))
"""


def test_a_killed_sweep_resumes_without_its_finished_points(base, tmp_path):
    folder, points = tmp_path / "sweep", (*FEW, FEW[0] | {"seed": 2})
    sweep = Sweep(base, points, points_at_once=1)
    process = subprocess.Popen([sys.executable, "-c", SWEEP, base, str(folder), json.dumps(points)], env=os.environ)
    record = folder / "points" / "bits=1,learning_rate=0.01,seed=0" / "point.json"
    deadline = time.monotonic() + 120
    while not record.exists():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = record.read_bytes()
    said = []
    with pytest.raises(RunFolderError, match=r"sweep folder .* exists\n  -> go on with --resume"):
        run_sweep(sweep, folder)
    with pytest.raises(RunFolderError, match=r"sweep cannot be made: Not a directory\n  -> give another folder"):
        run_sweep(sweep, record / "sweep")
    assert run_sweep(sweep, folder, resume=True, say=said.append)
    assert "3 points, 0 finished" not in said
    assert record.read_bytes() == before
    assert [point["settings"] for point in summary(folder)["points"]] == list(points)


def test_a_run_of_its_own_goes_on_from_its_checkpoint(base, tmp_path, monkeypatch):
    folder, sweep = tmp_path / "sweep", Sweep(base, product({"seed": (0, 1)}), points_at_once=0)
    resumed = []

    def stops(config, *, resume):
        resumed.append(resume)
        (tmp_path / "sweep" / "points" / "seed=0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sweep" / "points" / "seed=0" / "config.json").write_text(to_json(config))
        return SimpleNamespace(finished=False)

    monkeypatch.setattr(driver, "run", stops)
    assert not run_sweep(sweep, folder)
    assert not run_sweep(sweep, folder, resume=True)
    assert resumed == [False, True]


def test_nothing_is_written_before_all_is_checked(base, tmp_path):
    folder = tmp_path / "sweep"
    said = []
    assert run_sweep(Sweep(base, FEW, points_at_once=4), folder, dry_run=True, say=said.append)
    assert said[:2] == ["2 points, 0 finished", "  one program for 2 points, 2 at once:"]
    with pytest.raises(DataError, match=r"point seed=0: .*absent\.npy"):
        run_sweep(Sweep(base, product({"seed": (0, 1)}), ("data.train=absent.npy",)), folder)
    with pytest.raises(RunFolderError, match="holds no sweep to resume"):
        run_sweep(Sweep(base, FEW), folder, resume=True)
    widths = product({"quant.layer_bits": ((2, 2), (2, 4, 4))})
    with pytest.raises(RuleError, match=r"point layer_bits=2-4-4: .*3 widths were given for a parameter of shape"):
        run_sweep(Sweep(base, widths, points_at_once=1), folder)
    assert not list(tmp_path.iterdir())


def test_a_sweep_may_get_more_points_but_no_other_base(base, alone):
    sweep = Sweep(base, (*FEW, {"quant.bits": 2, "optimizer.learning_rate": 1e-2, "seed": 0}))
    said = []
    assert run_sweep(sweep, alone, resume=True, dry_run=True, say=said.append)
    assert said[0] == "3 points, 2 finished"
    with sole_writer(alone), pytest.raises(LockedError, match="alone is being written by process"):
        run_sweep(sweep, alone, resume=True)
    with pytest.raises(RunFolderError, match=r"begun with another config: optimizer\.b1 differ"):
        run_sweep(sweep, alone, resume=True, overrides=["optimizer.b1=0.8"])


def test_points_that_do_not_fit_are_told_so(base, tmp_path, monkeypatch):
    def full(self, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Together, "start", full)
    with pytest.raises(ConfigError, match=r"2 points at once do not fit .*\n  -> lower --points-at-once"):
        run_sweep(Sweep(base, FEW, points_at_once=2), tmp_path / "sweep")
