"""Two processes on one machine, joined as two hosts would be, against one process."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.config import to_json
from lowbit.errors import ProcessError
from lowbit.train import prepare, run
from lowbit.train.distributed import connect

EPS = float(jnp.finfo(jnp.float32).eps)
LOST_AFTER = 20  # seconds: a busy machine with few cores keeps a healthy process from its heartbeat for five
STEPS, RATE = 12, 1.0
# Comparable step after step: with eps=1 Adam's is about rate * g, where the usual eps amplifies rounding near g = 0,
# and no code of a float model can flip over the last bit of a sum.
SETTINGS = (
    *(f"train.tokens={256 * STEPS}", f"optimizer.learning_rate={RATE}", "optimizer.eps=1.0", "quant.method=float"),
    *("mesh.fsdp=2", "mesh.tensor=2"),
)

# One process of two: prints its rows of the first batch, and at the end what the run came to. While it reads batch
# `at`, process `victim` sends itself `number`.
WORKER = f"""
import dataclasses, json, os, sys
from pathlib import Path

from lowbit.config import from_json
from lowbit.train import prepare, train
from lowbit.train.distributed import connect

config, coordinator, index, victim, number, at = sys.argv[1:]
connect(coordinator, 2, int(index), lost_after={LOST_AFTER})
experiment = prepare(from_json(Path(config).read_text(), config))

class Disturbed:
    def __init__(self, data):
        self.data = data
    def __getattr__(self, name):
        return getattr(self.data, name)
    def batch(self, step):
        if step == int(at) and index == victim:
            os.kill(os.getpid(), int(number))
        return self.data.batch(step)

rows = experiment.train.batch(0).tolist()
result = train(dataclasses.replace(experiment, train=Disturbed(experiment.train)))
print(json.dumps({{"rows": rows, "step": result.step, "finished": result.finished}}))
"""


def start_two(config, folder, victim=-1, number=0, at=-1):
    """Starts both processes, with four devices each."""
    (folder / "config_of_two.json").write_text(to_json(config))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    env = os.environ | {"XLA_FLAGS": flags}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder / "config_of_two.json"), coordinator]
            + [str(argument) for argument in (index, victim, int(number), at)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]


def ends(processes):
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended[0][1] + ended[1][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]  # gloo greets before


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder):
    return np.array([row["loss"] for row in rows(folder / "metrics.jsonl")])


def test_two_processes_learn_stop_and_save_as_one(tiny_config, tmp_path):
    config = tiny_config(*SETTINGS, f"run_folder={tmp_path / 'two'}")
    first, second = ends(start_two(config, tmp_path, victim=1, number=signal.SIGTERM, at=4))

    # Every process reads its own half of a batch.
    batch = prepare(config).train.batch(0)
    np.testing.assert_array_equal(first["rows"] + second["rows"], batch)
    # The signal came to the second alone while it prepared step 5; both stop after the two steps the answer travels.
    assert (first["step"], first["finished"]) == (second["step"], second["finished"]) == (7, False)
    assert (tmp_path / "two" / "checkpoints" / "7").is_dir()

    # What two have saved one goes on with, as if it had been alone all along.
    assert run(config, resume=True).finished
    alone = tiny_config(*SETTINGS, f"run_folder={tmp_path / 'alone'}")
    run(alone)
    # Sums are taken in another order: relative to loss and gradient as derived in test_sharding. A step adds at most
    # rate * norm of that to the parameters, where the norm is clipped to 1, and the loss follows by its gradient.
    rounding = 5 * math.sqrt(256 * 60) * EPS
    tolerance = rounding * (1 + RATE * STEPS)
    wanted = losses(tmp_path / "alone")
    assert len(wanted) == STEPS
    np.testing.assert_allclose(losses(tmp_path / "two"), wanted, rtol=tolerance)
    assert wanted[0] - wanted[-1] > 100 * tolerance  # what was learnt is far more than what may differ
    (got,), (want,) = (rows(tmp_path / name / "evaluations.jsonl") for name in ("two", "alone"))
    np.testing.assert_allclose(got["nll"], want["nll"], rtol=tolerance)


@pytest.mark.slow
def test_two_processes_finish_and_the_first_writes_the_records(tiny_config, tmp_path):
    settings = ("train.tokens=512", "evaluation.every_steps=1", f"run_folder={tmp_path / 'two'}")
    first, second = ends(start_two(tiny_config(*settings), tmp_path))
    assert (first["step"], second["step"]) == (2, 2)
    assert [row["step"] for row in rows(tmp_path / "two" / "metrics.jsonl")] == [1, 2]
    assert [row["step"] for row in rows(tmp_path / "two" / "evaluations.jsonl")] == [1, 2]
    assert json.loads((tmp_path / "two" / "result.json").read_text())["device_count"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_says_why(tiny_config, tmp_path, victim):
    config = tiny_config(*SETTINGS, "train.tokens=1e6", "data.valid=")
    processes = start_two(config, tmp_path, victim, signal.SIGKILL, at=4)
    processes[victim].communicate(timeout=120)
    assert processes[victim].returncode == -signal.SIGKILL
    killed = time.monotonic()
    _, said = processes[1 - victim].communicate(timeout=120)
    # The first process is missed at once, as it leads; the other one by its heartbeats, which are looked at only as
    # often as they may be missed.
    assert time.monotonic() - killed < 2 * LOST_AFTER
    assert processes[1 - victim].returncode not in (0, None)
    assert "another process of the run is lost" in said or "failed in a step shared by all" in said
    assert "start all of them again with --resume" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("node0", 2, 0), "coordinator 'node0' is no HOST:PORT"),
        (("node0:12:34", 2, 0), "is no HOST:PORT"),
        (("node0:1234", 2, 2), "process 2 of 2 does not exist"),
        (("node0:1234", 0, 0), "process 0 of 0 does not exist"),
        (("node0:1234", 2, 0), "cannot join a run: .*must be called before any JAX calls"),
    ],
)
def test_connections_that_cannot_be_are_refused(arguments, message):
    jnp.zeros(()).block_until_ready()
    with pytest.raises(ProcessError, match=message):
        connect(*arguments)


def test_without_a_cluster_it_must_be_said_who_belongs_together():
    code = "from lowbit.train.distributed import connect; connect()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nothing here says which processes make up the run" in done.stderr
    assert "--coordinator HOST:PORT --processes N --process-index I" in done.stderr
    assert "is lost" not in done.stderr
