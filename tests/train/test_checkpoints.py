"""Checkpoints: whole or not at all, on any mesh, and of this run."""

import dataclasses
import os
import shutil
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lowbit.config import base
from lowbit.errors import CheckpointError, ConfigError
from lowbit.train import processes, sharding
from lowbit.train.checkpoints import Progress, load_model, opened
from lowbit.train.setup import prepare
from lowbit.train.signals import Clock

# Reads still under way when the first one finds a broken file report to an event loop that Orbax has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PROGRESS = Progress(step=0, tokens=0, elapsed=0.0, data="fingerprint")


@pytest.fixture(scope="module")
def saved(token_file, tmp_path_factory):
    """Two checkpoints of a state whose numbers say which one they are of."""
    from lowbit.config import base, override, shrink

    config = base()
    override(
        shrink(config),
        [f"data.train={token_file}", "model.architecture.vocab_size=64", "optimizer.frozen=params/norm/.*"],
    )
    experiment = prepare(config)
    state = experiment.initial_state()
    folder = tmp_path_factory.mktemp("checkpoints")
    with opened(folder) as checkpoints:
        for step in (1, 2):
            state = dataclasses.replace(state, step=state.step + 1)
            checkpoints.save(state, dataclasses.replace(PROGRESS, step=step), config)
    return experiment, state, folder


def whole(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.isdecimal())


def aside_of(folder):
    return folder.with_name(f"{folder.name}.unreadable")


@pytest.fixture
def copied(saved, tmp_path):
    experiment, state, folder = saved
    return experiment, state, shutil.copytree(folder, tmp_path / "copy")


def test_restores_every_bit_onto_another_mesh(copied):
    experiment, state, folder = copied
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    like = dataclasses.replace(experiment, mesh=mesh).abstract_state()
    with opened(folder) as checkpoints:
        restored, progress = checkpoints.restore(like, "fingerprint")
    assert progress == dataclasses.replace(PROGRESS, step=2)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for got, want, place in zip(*map(jax.tree.leaves, (restored, state, like)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
        assert got.sharding == place.sharding


def test_frozen_leaves_are_part_of_the_model(copied):
    experiment, state, folder = copied
    assert "norm" not in state.params["params"]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.variables)
    variables, step = load_model(folder, shapes, experiment.config)
    assert step == 2
    np.testing.assert_array_equal(variables["params"]["norm"]["scale"], experiment.params["norm"]["scale"])
    elsewhere = experiment.config.copy_and_resolve_references()
    elsewhere.run_folder = "moved"
    load_model(folder, shapes, elsewhere)
    elsewhere.quant.bits = 4.0
    with pytest.raises(CheckpointError, match=r"written by another config than lies here: quant\.bits differ"):
        load_model(folder, shapes, elsewhere)


def test_constants_of_other_collections_are_passed_on_not_saved(copied):
    experiment, _, folder = copied
    like = experiment.abstract_state()
    like = dataclasses.replace(like, constants=like.constants | {"teacher": {"w": np.ones(3)}})
    with opened(folder) as checkpoints:
        restored, _ = checkpoints.restore(like, "fingerprint")
    np.testing.assert_array_equal(restored.constants["teacher"]["w"], np.ones(3))


def truncate(newest):
    for file in [*newest.rglob("d/*"), *newest.rglob("manifest.ocdbt")]:
        os.truncate(file, file.stat().st_size // 2)


def overwrite_arrays(newest):
    for file in newest.rglob("d/*"):
        file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


def empty(newest):
    shutil.rmtree(newest)
    newest.mkdir()


def remove(name):
    return lambda newest: shutil.rmtree(newest / name)


def write(name, content):
    return lambda newest: (newest / name).write_bytes(content)


def drop_marks(newest):
    """What says that a checkpoint is whole, and what its parts are."""
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (newest / name).unlink(missing_ok=True)
    for file in newest.rglob("_METADATA"):
        file.unlink()


DAMAGES = {
    "arrays cut in half": truncate,
    "arrays of garbage": overwrite_arrays,
    "no meta": remove("meta"),
    "no model": remove("model"),
    "no training": remove("training"),
    "an empty folder": empty,
    "meta of garbage": write("meta/metadata", b"\x00\xff garbage"),
    "meta without contents": write("meta/metadata", b"{}"),
    "a tree of garbage": write("model/_METADATA", b"{ not json"),
    "no marks": drop_marks,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_checkpoint_gives_way_to_the_one_before(copied, damage):
    experiment, _, folder = copied
    newest = folder / "2"
    damage(newest)
    with opened(folder) as checkpoints, pytest.warns(UserWarning, match=r"checkpoint 2 in .* cannot be read") as caught:
        restored, progress = checkpoints.restore(experiment.abstract_state(), "fingerprint")
    assert progress.step == int(restored.step) == 1
    assert not newest.exists()
    assert (aside_of(folder) / "2").is_dir()
    # One line, not the whole of what TensorStore was asked to do.
    assert max(len(str(warning.message)) for warning in caught) < 300 + len(str(folder))


def test_a_half_written_checkpoint_is_not_seen_and_does_not_stay(copied):
    _, _, folder = copied
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    with opened(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert not list(folder.glob("3*"))


class Gate:
    """Holds back what ends a save, as a slow disk would."""

    def __init__(self, monkeypatch):
        self.entered, self.opened = threading.Event(), threading.Event()
        finalize = ocp.JsonCheckpointHandler.finalize

        def slowly(handler, directory):
            self.entered.set()
            assert self.opened.wait(60)
            finalize(handler, directory)

        monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", slowly)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_last_is_waited_for(copied, monkeypatch):
    experiment, state, folder = copied
    gate = Gate(monkeypatch)
    with opened(folder) as checkpoints:
        checkpoints.save(state, dataclasses.replace(PROGRESS, step=3), experiment.config)
        assert gate.entered.wait(60)
        # Here the loop takes its next steps: the third has not been written to the end.
        assert whole(folder) == ["1", "2"]
        # A second one waits for the first, so that they never pile up.
        threading.Timer(0.3, gate.opened.set).start()
        before = time.monotonic()
        checkpoints.save(state, dataclasses.replace(PROGRESS, step=4), experiment.config)
        assert time.monotonic() - before > 0.25
        assert "3" in whole(folder)
    with opened(folder) as checkpoints:  # closing has waited
        assert checkpoints.steps() == [3, 4]  # of four the newest two are kept


def test_nothing_readable_is_an_error_and_nothing_at_all_is_a_start(copied, tmp_path):
    experiment, _, folder = copied
    like = experiment.abstract_state()
    for step in (1, 2):
        shutil.rmtree(folder / str(step) / "training")
    with (
        opened(folder) as checkpoints,
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"),
    ):
        checkpoints.restore(like, "fingerprint")
    assert {"1", "2"} <= {path.name for path in folder.iterdir()}  # nothing has been moved
    assert not aside_of(folder).exists()
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(like, "fingerprint") is None
    aside_of(tmp_path / "new").mkdir()
    with opened(tmp_path / "new") as checkpoints, pytest.raises(CheckpointError, match=r"or from .*new\.unreadable"):
        checkpoints.restore(like, "fingerprint")


def test_another_model_is_refused_and_the_checkpoints_stay(copied):
    experiment, state, folder = copied
    config = experiment.config.copy_and_resolve_references()
    config.model.architecture.intermediate_size = 96
    with (
        opened(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"params/layers/mlp/down_proj/kernel has shape \[2, 64, 32\] in it"),
    ):
        checkpoints.restore(prepare(config).abstract_state(), "fingerprint")
    assert not aside_of(folder).exists()
    with opened(folder) as checkpoints:
        restored, progress = checkpoints.restore(experiment.abstract_state(), "fingerprint")
    assert progress.step == int(restored.step) == int(state.step)


def test_another_config_is_refused_with_the_keys(copied):
    experiment, _, folder = copied
    other = experiment.config.copy_and_resolve_references()
    other.quant.bits = 4.0
    other.optimizer.learning_rate = 0.5
    other.log.every_steps = 7  # decides nothing
    with opened(folder) as checkpoints:
        checkpoints.check(experiment.config)
        with pytest.raises(CheckpointError, match=r"optimizer\.learning_rate, quant\.bits differ"):
            checkpoints.check(other)


def test_of_the_data_only_the_files_may_be_named_anew(copied):
    experiment, _, folder = copied
    other = experiment.config.copy_and_resolve_references()
    other.data.train, other.data.valid = ("moved.npy",), ("more.npy",)
    with opened(folder) as checkpoints:
        checkpoints.check(other)
        other.data.attend_across_documents, other.data.separator = False, "<s>"
        with pytest.raises(CheckpointError, match=r"data\.attend_across_documents, data\.separator differ"):
            checkpoints.check(other)


def test_what_another_process_cannot_read_is_read_by_none(copied, monkeypatch):
    experiment, _, folder = copied
    answers = iter([False, True, False, False])  # the arrays of the newest fail elsewhere
    monkeypatch.setattr(processes, "any_of", lambda failed: next(answers))
    with opened(folder) as checkpoints, pytest.warns(UserWarning, match="checkpoint 2 .*another process says so"):
        _, progress = checkpoints.restore(experiment.abstract_state(), "fingerprint")
    assert progress.step == 1


def test_other_data_is_refused(copied):
    experiment, _, folder = copied
    with opened(folder) as checkpoints, pytest.raises(CheckpointError, match="made with other training data"):
        checkpoints.restore(experiment.abstract_state(), "another")


def test_clock():
    by_steps = Clock(3, float("inf"))
    assert [step for step in range(1, 8) if by_steps.due(step)] == [3, 6]
    assert not Clock(0, float("inf")).due(1)
    assert not by_steps.late()
    by_minutes = Clock(0, 1e-3)
    assert not by_minutes.late()
    time.sleep(0.07)
    assert by_minutes.late()
    by_minutes.restart()
    assert not by_minutes.late()
    with pytest.raises(ConfigError, match="every -1 steps"):
        Clock(-1, 1.0)
    with pytest.raises(ConfigError, match=r"or 0\.0 minutes"):
        Clock(0, 0.0)


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        load_model(tmp_path / "absent", {}, base())
