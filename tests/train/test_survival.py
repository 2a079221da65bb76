"""What a run survives, and what it leaves behind where it does not: broken steps, full disks, other meshes."""

import dataclasses
import errno
import gc
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import CheckpointError, DiskFullError, NonFiniteError
from lowbit.train import broken, load_trained, prepare, sharding, train
from lowbit.train.disk import check_room, full_disk_explained
from lowbit.train.metrics import JsonLines

EPS = float(jnp.finfo(jnp.float32).eps)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def reading(experiment, batch):
    """Returns the experiment with data whose batch of a step is `batch(read, step)`, where `read(step)` is its own."""

    class Disturbed(type(experiment.train)):
        def batch(self, step):
            return batch(super().batch, step)

    fields = {field.name: getattr(experiment.train, field.name) for field in dataclasses.fields(experiment.train)}
    return dataclasses.replace(experiment, train=Disturbed(**fields))


def on(experiment, shape):
    """Returns the experiment on the first devices, as many as the mesh has."""
    devices = jax.devices()[: math.prod(shape)]
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)), devices=devices)
    return dataclasses.replace(experiment, mesh=mesh)


# --- a step that leaves the numbers


def test_a_broken_step_is_taken_apart_and_kept(tiny_config):
    config = tiny_config("train.tokens=2560", "checkpoint.every_steps=2", "log.every_steps=3", "data.valid=")
    experiment = prepare(config)
    wrong_batch = jnp.asarray(experiment.train.batch(5))

    def overflows_at_step_six(variables, batch):
        loss, metrics = experiment.objective(variables, batch)
        kernel = variables["params"]["layers"]["mlp"]["up_proj"]["kernel"][1]  # of layer 1 alone
        zero = jnp.sum(kernel - jax.lax.stop_gradient(kernel))
        # Twice as much as float32 holds, and only in the gradient.
        large = zero * jnp.where(jnp.all(batch == wrong_batch), jnp.float32(3e38), 0)
        return loss + large + large, metrics

    with pytest.raises(NonFiniteError) as caught:
        train(on(dataclasses.replace(experiment, objective=overflows_at_step_six), (1, 1, 1)))
    message = str(caught.value)
    assert message.startswith("step 6: loss 3.9")
    assert "gradient norm inf; not finite, gradients: params/layers/mlp/up_proj/kernel (2,048 of 4,096 in layer 1)" in (
        message
    )
    assert "checkpoints up to step 4 are good" in message
    assert f"{config.run_folder}/broken holds the state before step 6, its batch and a report" in message

    kept = broken.load(config.run_folder)
    assert int(kept.state.step) == 5
    np.testing.assert_array_equal(kept.batch, experiment.train.batch(5))
    assert kept.report["step"] == 6
    assert kept.report["parameters_before"] == {}
    entry = {"not_finite": 2048, "size": 4096, "layers": [1]}
    assert kept.report["gradients"] == {"params/layers/mlp/up_proj/kernel": entry}
    assert "params/layers/mlp/up_proj/kernel" in kept.report["parameters_after"]
    # With it in hand the gradient can be looked at.
    gradient = jax.grad(lambda p: overflows_at_step_six({**kept.state.constants, **p}, jnp.asarray(kept.batch))[0])
    found = broken.not_finite(gradient(kept.state.params))
    assert found == kept.report["gradients"]
    # No run resumes from it.
    assert load_trained(config.run_folder).step == 4


@pytest.mark.slow
def test_a_step_that_breaks_only_once_is_told_from_one_that_always_does(tiny_config):
    config = tiny_config("train.tokens=1024", "checkpoint.every_steps=2", "data.valid=")
    experiment = prepare(config)

    times = []

    def wrong_at_first(read, step):
        times.append(step)
        return np.full_like(read(step), 63) if step == 2 and times.count(2) == 1 else read(step)

    def breaks(variables, batch):
        loss, metrics = experiment.objective(variables, batch)
        return jnp.where(jnp.all(batch == 63), jnp.nan, loss), metrics

    message = r"step 3: loss nan.*taken again from step 2 on, the same step is finite(.|\n)*resume; if this happens"
    with pytest.raises(NonFiniteError, match=message):
        train(reading(on(dataclasses.replace(experiment, objective=breaks), (1, 1, 1)), wrong_at_first))
    assert train(on(prepare(config), (1, 1, 1)), resume=True).finished


def test_load_wants_a_run_that_broke(tiny_config):
    config = tiny_config("train.tokens=256", "data.valid=")
    train(on(prepare(config), (1, 1, 1)))
    with pytest.raises(CheckpointError, match="keeps no broken step"):
        broken.load(config.run_folder)


# --- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """Returns make(bytes) -> a folder on a file system of that size; needs the right to mount one."""
    mounted = []

    def make(size):
        folder = tmp_path / "small_disk"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a file system needs root")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def filling_up(experiment, left):
    """Returns the experiment on one device; while it reads batch 4, a file takes the disk but for `left` bytes."""
    folder = Path(experiment.config.run_folder)

    def read_late(read, step):
        if step == 4:
            while not (folder / "checkpoints" / "4").is_dir():
                time.sleep(0.01)
            free = os.statvfs(folder)
            (folder.parent / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - left))
        return read(step)

    return reading(on(experiment, (1, 1, 1)), read_late)


def test_a_full_disk_is_reported_and_the_last_checkpoint_is_kept(tiny_config, small_disk):
    config = tiny_config("train.tokens=2560", "checkpoint.every_steps=2", "data.valid=")
    config.run_folder = str(small_disk("8M") / "run")
    message = r"checkpoint 6 takes [\d,]+ bytes, and the disk of .*/run/checkpoints has [\d,]+ left\n  -> free space"
    with pytest.raises(DiskFullError, match=message):
        train(filling_up(prepare(config), left=65536))
    assert load_trained(config.run_folder).step == 4
    (Path(config.run_folder).parent / "ballast").unlink()
    assert train(on(prepare(config), (1, 1, 1)), resume=True).finished


# Writes still under way when the first one fails report to an event loop that Orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_reported_too(tiny_config, small_disk, monkeypatch):
    config = tiny_config("train.tokens=2560", "checkpoint.every_steps=2", "data.valid=")
    folder = Path(small_disk("8M")) / "run"
    config.run_folder = str(folder)
    # As if there had been room when the save began: the error comes from the thread that writes, steps later.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(DiskFullError, match=r"the disk of .*/run/checkpoints is full \([\d,]+ bytes are free\)"):
        train(filling_up(prepare(config), left=65536))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()) == ["2", "4"]
    assert load_trained(folder).step == 4
    gc.collect()  # those writes: while their warnings are ignored, and not in a later test


def test_a_log_that_finds_no_room_stops_the_run_with_its_checkpoints_whole(tiny_config, monkeypatch):
    config = tiny_config("train.tokens=2560", "checkpoint.every_steps=2", "data.valid=")
    write = JsonLines.write

    def full_after_step_five(lines, row):
        if row["step"] > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(lines, row)

    monkeypatch.setattr(JsonLines, "write", full_after_step_five)
    with pytest.raises(DiskFullError, match=r"the disk of .*/run is full(.|\n)*resume the run"):
        train(on(prepare(config), (1, 1, 1)))
    monkeypatch.undo()
    assert load_trained(config.run_folder).step == 4
    assert train(on(prepare(config), (1, 1, 1)), resume=True).finished
    assert [row["step"] for row in lines(Path(config.run_folder) / "metrics.jsonl")] == list(range(1, 11))


def test_a_line_that_was_cut_off_by_a_full_disk_is_an_error_and_closing_is_none(small_disk):
    folder = small_disk(8192)
    log = JsonLines(folder / "metrics.jsonl", 0)

    def fill():
        for step in range(1000):
            log.write({"step": step, "text": "x" * 100})

    with pytest.raises(DiskFullError, match="is full"), full_disk_explained(folder):
        fill()
    with pytest.raises(OSError, match="No space left"):
        log.close()
    assert len(lines_that_can_be_read(folder / "metrics.jsonl")) > 10


def lines_that_can_be_read(path):
    return JsonLines(path, 10**6, writes=False).keys


def test_room_is_compared_with_what_is_needed(tmp_path):
    check_room(tmp_path, 1, "a byte")
    with pytest.raises(DiskFullError, match=r"a model takes 1,000,000,000,000,000,000 bytes, and the disk of"):
        check_room(tmp_path, 10**18, "a model")


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(io.UnsupportedOperation), full_disk_explained(tmp_path):
        raise io.UnsupportedOperation
    # What came first counts, however it was wrapped.
    with pytest.raises(DiskFullError), full_disk_explained(tmp_path):
        raise RuntimeError("a thread failed") from OSError(errno.EDQUOT, "over quota")


# --- other meshes


STEPS, RATE = 12, 1.0
MESHES = [(2, 2, 2), (1, 1, 2), (1, 1, 1)]  # 8, 2 and 1 devices


def test_a_run_moves_from_mesh_to_mesh_with_equal_losses(tiny_config, tmp_path):
    # The state arrives with every bit (test_checkpoints), and on the mesh it came from so do the losses (test_loop). On
    # another one sums are taken in another order, and losses are equal up to that.
    # See test_multihost for the settings under which steps on different meshes can be compared.
    settings = (f"train.tokens={256 * STEPS}", f"optimizer.learning_rate={RATE}", "optimizer.eps=1.0", "data.valid=")
    settings += ("quant.method=float", "checkpoint.every_steps=4", "checkpoint.keep=9")
    one = prepare(tiny_config(*settings, f"run_folder={tmp_path / 'one'}"))
    train(on(one, (1, 1, 1)))

    moving = prepare(tiny_config(*settings, f"run_folder={tmp_path / 'moving'}"))
    for stop, shape in zip((4, 8, STEPS), MESHES, strict=True):

        def stopping(read, step, last=stop - 1):
            if step == last < STEPS - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return read(step)

        result = train(reading(on(moving, shape), stopping), resume=stop > 4)
        assert (result.step, result.finished) == (stop, stop == STEPS)
    wanted, got = (
        np.array([row["loss"] for row in lines(tmp_path / name / "metrics.jsonl")]) for name in ("one", "moving")
    )
    assert len(wanted) == len(got) == STEPS
    rounding = 5 * math.sqrt(256 * 60) * EPS  # derived in test_sharding
    np.testing.assert_allclose(got, wanted, rtol=rounding * (1 + RATE * STEPS))
    assert wanted[0] - wanted[-1] > 100 * rounding * (1 + RATE * STEPS)


# --- killed


@pytest.mark.slow
def test_a_run_killed_three_times_equals_an_undisturbed_one(tmp_path):
    script = Path(__file__).resolve().parents[2] / "scripts" / "kill_many_times.py"
    record = tmp_path / "killed.json"
    command = [sys.executable, str(script), "--kills", "3", "--steps", "24", "--output", str(record)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(record.read_text())
    assert found["equal"]
    assert sorted(moment["kind"] for moment in found["moments"]) == ["save", "start-up", "steps"]
