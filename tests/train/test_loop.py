"""Runs from end to end: learning, resuming, stopping, breaking, and what is refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.config import to_json
from lowbit.errors import CheckpointError, ConfigError, DataError, ModelError, RunFolderError, TokenizerError
from lowbit.train import NonFiniteError, load_trained, prepare, run, train
from lowbit.train.learner import make_model
from lowbit.tree import fake_quant


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder):
    return {row["step"]: (row["loss"], row["grad_norm"], row["lr"]) for row in lines(folder / "metrics.jsonl")}


def test_a_run_learns_and_leaves_everything_behind(tiny_config):
    config = tiny_config("train.tokens=5120", "optimizer.learning_rate=0.03", "evaluation.every_steps=10")
    config.log.tensorboard = True
    result = run(config)
    assert result.finished
    assert result.step == 20
    assert result.tokens == 5120
    folder = result.run_folder
    rows = lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert set(rows[0]) == {"step", "tokens", "loss", "lr", "grad_norm", "param_norm", "tokens_per_s", "elapsed"}
    assert rows[-1]["tokens"] == 5120
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3  # it begins at ln 64 = 4.16 nats
    evaluations = lines(folder / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [10, 20]
    assert evaluations[-1]["nll"] == result.evaluations["tokens"].nll
    assert any((folder / "tensorboard").glob("events.*"))
    record = json.loads((folder / "result.json").read_text())
    assert record["evaluations"]["tokens"]["nll"] == result.evaluations["tokens"].nll
    assert record["jax_version"] == jax.__version__
    assert record["seed"] == 0
    assert record["device_count"] == 8
    assert "git_commit" in record
    assert 2 < record["bits_per_weight"] < 3
    assert json.loads((folder / "config.json").read_text()) == json.loads(to_json(config))

    trained = load_trained(folder)
    assert trained.step == 20
    assert trained.config.to_dict() == config.to_dict()
    # The tree form with what was read back predicts as well as the run said.
    params = fake_quant(trained.rules, trained.params, trained.state)
    model = make_model(trained.config, trained.cfg, None)
    windows = prepare(config).valid["tokens"][:8]
    logits = model.apply({"params": params}, jnp.asarray(windows[:, :-1]))
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(windows[:, 1:, None]), axis=-1).mean()
    # Float32 sums in another order, over 32 positions of 64 logits each.
    np.testing.assert_allclose(nll, result.evaluations["tokens"].nll, rtol=1e-5)

    with pytest.raises(RunFolderError, match=r"run folder .* exists"):
        run(config)
    with pytest.raises(RunFolderError, match="is finished"):
        run(config, resume=True)


RUN = """
import sys
from pathlib import Path
from lowbit.config import from_json
from lowbit.train import run
run(from_json(Path(sys.argv[1]).read_text(), "argument"))
"""


def start(config, path):
    """Trains in another process, which inherits the environment that makes eight devices."""
    path.write_text(to_json(config))
    return subprocess.Popen([sys.executable, "-c", RUN, str(path)], env=os.environ)


def wait_for_step(folder, step, process):
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / str(step)).is_dir():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_run_resumes_with_the_same_losses_bit_for_bit(tiny_config, tmp_path):
    settings = ("train.tokens=10240", "checkpoint.every_steps=5", "data.valid=")
    killed = tiny_config(*settings, f"run_folder={tmp_path / 'killed'}")
    process = start(killed, tmp_path / "argument.json")
    wait_for_step(tmp_path / "killed", 10, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()
    assert run(killed, resume=True).finished
    run(tiny_config(*settings, f"run_folder={tmp_path / 'undisturbed'}"))
    wanted = losses(tmp_path / "undisturbed")
    assert list(wanted) == list(range(1, 41))
    assert losses(tmp_path / "killed") == wanted


def test_sigterm_saves_and_the_rest_follows_on_resume(tiny_config, tmp_path, interrupted):
    config = tiny_config("train.tokens=2560", "data.valid=")
    handler = signal.getsignal(signal.SIGTERM)
    result = train(interrupted(prepare(config), 4))
    assert (result.finished, result.step) == (False, 5)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (result.run_folder / "result.json").exists()
    with pytest.raises(CheckpointError, match=r"of another config: optimizer\.learning_rate differ"):
        run(tiny_config("train.tokens=2560", "data.valid=", "optimizer.learning_rate=1.0"), resume=True)
    resumed = run(config, resume=True)
    assert (resumed.finished, resumed.step) == (True, 10)
    whole = run(tiny_config("train.tokens=2560", "data.valid=", f"run_folder={tmp_path / 'whole'}"))
    assert losses(resumed.run_folder) == losses(whole.run_folder)


@pytest.mark.usefixtures("one_device")
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_config):
    config = tiny_config("train.tokens=2560", "checkpoint.every_steps=2", "log.every_steps=3")
    experiment = prepare(config)

    def breaks_at_step_six(variables, batch):
        loss, metrics = experiment.objective(variables, batch)
        wrong = jnp.all(batch == jnp.asarray(experiment.train.batch(5)))
        return jnp.where(wrong, jnp.nan, loss), metrics

    with pytest.raises(NonFiniteError, match=r"step 6: loss nan(.|\n)*checkpoints up to step 4 are good"):
        train(dataclasses.replace(experiment, objective=breaks_at_step_six))
    assert load_trained(config.run_folder).step == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_trained(config.run_folder).params))


@pytest.mark.usefixtures("one_device")
def test_an_update_that_breaks_the_model_is_noticed_before_it_is_saved(tiny_config):
    config = tiny_config("train.tokens=256", "optimizer.learning_rate=1e38", "optimizer.clip_norm=inf")
    config.schedule.warmup = 0.0
    message = r"step 1: .*parameters' norm after the update(.|\n)*-> start anew in another run_folder with a lower"
    with pytest.raises(NonFiniteError, match=message):
        run(config)
    folder = Path(config.run_folder)
    assert not (folder / "result.json").exists()
    assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.usefixtures("one_device")
def test_an_interrupted_evaluation_is_made_once_and_damaged_lines_are_written_again(tiny_config):
    settings = ("train.tokens=1024", "evaluation.every_steps=2", "checkpoint.every_steps=2", "checkpoint.keep=9")
    config = tiny_config(*settings)
    folder = run(config).run_folder
    wanted = lines(folder / "evaluations.jsonl")
    assert [row["step"] for row in wanted] == [2, 4]

    # Killed after the evaluation at the end, before the result.
    (folder / "result.json").unlink()
    run(config, resume=True)
    assert lines(folder / "evaluations.jsonl") == wanted

    # Killed between the checkpoint of step 2 and its evaluation, by a power cut that left NULs in the metrics.
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    (folder / "evaluations.jsonl").write_text("")
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:2]) + b"\0" * 64 + b"\n")
    run(config, resume=True)
    assert lines(folder / "evaluations.jsonl") == wanted
    assert list(losses(folder)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["train.tokens=100"], ConfigError, "less than one step of 256 tokens"),
        (["train.loss_chunks=5"], ConfigError, r"loss_chunks=5 does not divide train\.sequence_length=32"),
        (["train.sequence_length=128", "train.tokens=4096"], ConfigError, "exceeds the model's 64 positions"),
        (["data.train="], ConfigError, "data.train names no file"),
        (["data.train=absent.npy"], DataError, "no token file at absent.npy"),
        (["data.train=absent.txt"], TokenizerError, "the model has no tokenizer"),
        (["model.tokenizer=/nowhere"], TokenizerError, "no tokenizer.json in /nowhere"),
        (["model.architecture.vocab_size=32"], DataError, "outside of the vocabulary"),
        (["evaluation.windows=999"], DataError, "evaluation.windows=999, and the text 'tokens' has 62"),
        (["model.compute_dtype=float8"], ConfigError, "unknown model.compute_dtype 'float8'"),
        (["model.remat=som"], ConfigError, r"unknown model\.remat 'som'\n  -> choose from"),
        (["model.attention=flash"], ModelError, "attention 'flash' is unknown"),
        (["model.attention=cudnn"], ModelError, "cuDNN attention cannot run on cpu with float32"),
        (["train.accumulate=0"], ConfigError, "train.accumulate=0"),
        (["checkpoint.every_steps=-1"], ConfigError, "checkpoint.every_steps=-1"),
        (["run_folder="], RunFolderError, "run_folder is not set"),
    ],
)
def test_mistakes_are_found_before_any_work(tiny_config, overrides, error, message):
    config = tiny_config(*overrides)
    with pytest.raises(error, match=message):
        run(config)
    folder = tiny_config().run_folder
    assert not os.path.exists(folder)


def test_there_must_be_a_run_to_resume(tiny_config):
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        run(tiny_config(), resume=True)


def test_load_trained_wants_a_run_folder(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        load_trained(tmp_path)
