"""Coresets: scores against the paper's formulas, and runs that choose, stop, go on, and lie on a mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.config import base, from_json, to_json
from lowbit.data import TokenDataset
from lowbit.data.coreset import CoresetDataset
from lowbit.distill.losses import Outputs
from lowbit.errors import ConfigError
from lowbit.sweep.points import Point
from lowbit.sweep.programs import make_groups
from lowbit.train import prepare, run
from lowbit.train.coreset import combined, sequence_scores
from lowbit.train.setup import make_lesson

pytestmark = pytest.mark.usefixtures("one_device")

EPS = float(jnp.finfo(jnp.float32).eps)
ERROR = ("coreset.share=0.25", "coreset.score=error")
VOCAB = 5


@pytest.fixture
def make(tiny_config, tmp_path):
    """Returns make(name, *overrides) -> config of a run of that name, without evaluation."""
    return lambda name, *overrides: tiny_config(f"run_folder={tmp_path / name}", "data.valid=", *overrides)


@pytest.fixture
def taught(make):
    """Overrides by which a run has a teacher: a float model that has seen a few tokens."""
    source = run(make("float", "quant.method=float")).run_folder
    return f"model.source={source}", "distill.weight=0.5"


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("chunks", [1, 3])
def test_scores_are_the_means_of_the_papers_norms(chunks):
    rng = np.random.default_rng(0)
    student, teacher = (
        Outputs(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 6, width), (width, VOCAB))))
        for width in (4, 3)
    )
    targets = rng.integers(0, VOCAB, (2, 6)).astype(np.int32)
    got = jax.jit(sequence_scores, static_argnames="chunks")(student, teacher, jnp.asarray(targets), chunks=chunks)
    p, q = (softmax(np.asarray(each.hidden, np.float64) @ np.asarray(each.head)) for each in (student, teacher))
    errors = np.sqrt(((p - np.eye(VOCAB)[targets]) ** 2).sum(-1)).mean(-1)
    disagreements = np.sqrt(((p - q) ** 2).sum(-1)).mean(-1)
    # Products of 4 terms of about 1, then probabilities: some 20 roundings, relative to numbers below 1.
    np.testing.assert_allclose(got, np.stack([errors, disagreements], -1), rtol=0, atol=20 * EPS)
    alone = sequence_scores(student, None, jnp.asarray(targets), chunks)
    np.testing.assert_array_equal(alone[:, 1], 0.0)
    np.testing.assert_allclose(alone[:, 0], got[:, 0], rtol=4 * EPS)


def test_mixed_goes_from_error_to_disagreement_along_a_cosine():
    scores = np.array([[1.0, 0.0], [0.25, 0.5]], np.float32)
    np.testing.assert_array_equal(combined("error", scores, 7, 9, 0), [1.0, 0.25])
    np.testing.assert_array_equal(combined("disagreement", scores, 7, 9, 0), [0.0, 0.5])
    np.testing.assert_array_equal(combined("mixed", scores, 0, 9, 0), [1.0, 0.25])
    np.testing.assert_allclose(combined("mixed", scores, 9, 9, 0), [0.0, 0.5], atol=1e-16)
    # cos(60 degrees) = 1/2
    np.testing.assert_allclose(combined("mixed", scores, 6, 9, 0), [0.5, 0.375], rtol=1e-15)
    random = [combined("random", scores, *step_and_seed) for step_and_seed in ((0, 9, 0), (1, 9, 0), (0, 9, 1))]
    assert len({tuple(each.tolist()) for each in random}) == 3
    np.testing.assert_array_equal(random[0], combined("random", 0 * scores, 0, 9, 0))


def test_a_run_reads_the_windows_that_it_is_farthest_from(make):
    config = make("run", *ERROR, "train.tokens=1280", "coreset.every_steps=3", "optimizer.learning_rate=0.03")
    experiment = prepare(config)
    state = experiment.initial_state()
    data = experiment.train
    assert isinstance(data, CoresetDataset)
    windows = data.windows
    scores = np.asarray(jax.jit(experiment.scorer)(state.variables, jnp.asarray(windows[:])))[:, 0]
    run(config)
    assert sorted(path.name for path in data.folder.iterdir()) == ["0.npy", "3.npy"]
    first, second = (np.load(data.folder / f"{step}.npy") for step in (0, 3))
    assert len(first) == len(second) == data.chosen == round(0.25 * len(windows))
    # All scored at once, in another program: who is above the border by more than rounding is chosen.
    border = np.sort(scores)[-data.chosen]
    assert {i for i, score in enumerate(scores) if score > border + 1e-5} <= set(first.tolist())
    assert {i for i, score in enumerate(scores) if score < border - 1e-5}.isdisjoint(first.tolist())
    assert set(first.tolist()) != set(second.tolist())
    assert {int(number) for step in range(3) for number in data.indices(step)} == set(first.tolist())


def test_without_a_number_of_steps_a_choice_lasts_until_it_was_read(make):
    data = prepare(make("x", *ERROR)).train
    assert (data.chosen, data.batch_size, data.every) == (16, 8, 2)
    assert prepare(make("x", "coreset.share=0.3", "coreset.score=random")).train.every == 3  # 19 windows


@pytest.mark.parametrize(
    "kill_in", [1, pytest.param(3, marks=pytest.mark.slow)], ids=["within_a_period", "after_a_choice"]
)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_disturbed(make, taught, kill_in, ends_with_the_same_bits):
    settings = (*taught, "coreset.share=0.25", "coreset.every_steps=3", "train.tokens=1280")
    settings += ("optimizer.learning_rate=0.03",)
    cut, whole = (make(name, *settings) for name in ("cut", "whole"))
    ends_with_the_same_bits(cut, whole, kill_in, 5)
    for step in (0, 3):
        chosen = [np.load(Path(config.run_folder) / "coresets" / f"{step}.npy") for config in (cut, whole)]
        np.testing.assert_array_equal(*chosen)


@pytest.mark.slow
def test_runs_on_a_mesh_learn_what_one_device_learns(make, taught):
    losses = []
    for name, mesh in (("one", ()), ("cut", ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"))):
        config = make(name, *taught, "coreset.share=0.25", "train.tokens=768", *mesh)
        run(config)
        rows = (Path(config.run_folder) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    # Sums of float32 in another order; windows of other scores would be 0.01 nats apart.
    np.testing.assert_allclose(*losses, rtol=1e-5)


WORKER = """
import sys
from pathlib import Path
from lowbit.config import from_json
from lowbit.train import run
from lowbit.train.distributed import connect
config, coordinator, index = sys.argv[1:]
connect(coordinator, 2, int(index))
run(from_json(Path(config).read_text(), config))
"""


@pytest.mark.slow
def test_two_processes_choose_what_one_chooses(make, tmp_path):
    settings = (*ERROR, "coreset.every_steps=2", "train.tokens=768")
    one, two = make("one", *settings), make("two", *settings, "mesh.fsdp=2", "mesh.tensor=2")
    (tmp_path / "config.json").write_text(to_json(two))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    arguments = [sys.executable, "-c", WORKER, str(tmp_path / "config.json"), coordinator]
    both = [subprocess.Popen([*arguments, index], env=env, stderr=subprocess.PIPE, text=True) for index in "01"]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "".join(errors)
    run(one)
    for step in (0, 2):
        chosen = [np.load(Path(config.run_folder) / "coresets" / f"{step}.npy") for config in (one, two)]
        np.testing.assert_array_equal(*chosen)


def test_all_windows_are_read_as_ever(make):
    assert type(prepare(make("x")).train) is TokenDataset
    record = json.loads(to_json(base()))
    del record["coreset"]
    assert from_json(json.dumps(record), "here") == base()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("coreset.share=0",), "coreset.share=0.0\n  -> give a number above 0, to 1"),
        (("coreset.share=2",), "coreset.share=2.0\n  -> give a number above 0, to 1"),
        ((*ERROR, "coreset.every_steps=-1"), "coreset.every_steps=-1\n  -> give at least 0"),
        (("coreset.share=0.5", "coreset.score=eror"), "no coreset.score 'eror'\n  -> did you mean 'error'"),
        (("coreset.score=error",), "coreset.score='error' is set, and all windows are read\n  -> set coreset.share"),
        (("coreset.every_steps=5",), "coreset.every_steps=5 is set, and all windows are read"),
        (("coreset.share=0.5",), "'mixed' compares with a teacher, and the run has none\n  -> set distill.weight, or"),
        (
            (*ERROR, "distill.weight=0.5", "distill.cache=c", "distill.teacher=t"),
            "a coreset chooses them on the way\n  -> leave distill.ca",
        ),
    ],
)
def test_coresets_that_cannot_be_are_refused_before_any_work(make, overrides, message):
    with pytest.raises(ConfigError, match=message):
        prepare(make("x", *overrides))
    assert not Path(make("x").run_folder).exists()


def test_a_cache_cannot_be_made_for_windows_that_are_not_known(make):
    with pytest.raises(
        ConfigError, match=r"which windows the run reads is seen when it runs\n  -> leave coreset\.share"
    ):
        make_lesson(make("x", *ERROR, "distill.weight=0.5"), 4)


def test_points_of_a_sweep_choose_by_themselves(make):
    points = [Point(name, {}, make(name, *ERROR)) for name in "ab"]
    assert [group.at_once for group in make_groups(points, 8)] == [0, 0]
