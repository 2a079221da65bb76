"""After a step that left the numbers: which tensors did, and what is kept so that a person can look.

A run notices a broken step some steps later, when its state is NaN from end to end and says nothing. So the steps since
the newest checkpoint are taken again, up to the broken one, which is then looked at closely. `run_folder/broken/` gets

report.json            the step, and how many values of which tensor are not finite
batch.npy              the batch, i32[b t+1]; with a teacher's cache of k tokens i32[b (2k+2)t+1], see `TaughtDataset`
checkpoints/<step-1>/  the state before the step, in the form of the run's own checkpoints; nothing resumes from it

`load` reads them back.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from lowbit.atomic import write_atomically
from lowbit.errors import CheckpointError, DiskFullError, NonFiniteError
from lowbit.strict_json import finite
from lowbit.train import processes, sharding
from lowbit.train.checkpoints import Progress, opened
from lowbit.train.optimizers import path_string
from lowbit.train.run_folder import RunFolder
from lowbit.train.setup import Experiment, prepare
from lowbit.train.state import TrainState, Tree
from lowbit.train.step import TrainStep, make_train_step

NAMED = 3
"""How many tensors of a kind a message names; the report holds all."""

Counts = dict[str, dict[str, Any]]
"""By path, of tensors that are not finite everywhere: "not_finite" and "size", values; "layers", where these are."""


class BrokenStep(Exception):
    """Raised within the loop for a step whose loss, gradient or update is not finite."""

    def __init__(self, step: int, metrics: Mapping[str, Any]):
        super().__init__(step)
        self.step, self.metrics = step, dict(metrics)


class Broken(NamedTuple):
    """What a run kept of the step that broke it.

    Attributes:
      experiment: of the run. `experiment.objective(state.variables, batch)` is what broke, or its gradient is, or the
        update that `experiment.optimizer` makes of it.
      state: before the step.
      batch: i32[b t+1], or i32[b (2k+2)t+1] where the run reads a teacher's cache of k tokens a position.
      report: "step", "loss" and "grad_norm" (null where not finite), and as `Counts` each "gradients",
        "parameters_before" and "parameters_after".
    """

    experiment: Experiment
    state: TrainState
    batch: np.ndarray
    report: dict[str, Any]


def load(run_folder: str | Path) -> Broken:
    """Reads what a run kept of the step that broke it.

    Raises:
      RunFolderError: no run folder.
      CheckpointError: the run broke at no step, or what it kept cannot be read.
    """
    folder = RunFolder(Path(run_folder))
    config, _, _ = folder.read()
    report = folder.broken / "report.json"
    if not report.is_file():
        raise CheckpointError(f"{folder.path} keeps no broken step", "name the folder of a run that a NaN stopped")
    experiment = prepare(config)
    with opened(folder.broken / "checkpoints") as checkpoints:
        restored = checkpoints.restore(
            experiment.restorable_state(), experiment.train.fingerprint(), experiment.teacher
        )
    if restored is None:
        raise CheckpointError(f"{folder.broken} holds no state", "resume the run: it breaks again at the same step")
    return Broken(experiment, restored[0], np.load(folder.broken / "batch.npy"), json.loads(report.read_text()))


def examine(
    error: BrokenStep,
    experiment: Experiment,
    folder: RunFolder,
    start: Callable[[], tuple[TrainState, Progress]],
    step_fn: TrainStep,
) -> NonFiniteError:
    """Takes the steps up to the broken one again, keeps what it starts from, and returns the error that tells all.

    Args:
      error: from the loop.
      experiment: of the run.
      folder: of the run.
      start: returns a state before the broken step, and where it stands: the newest checkpoint, or the beginning.
      step_fn: the run's compiled step; the state passed to it is consumed.
    """
    state, progress = start()
    for step in range(progress.step + 1, error.step):
        state, _ = step_fn(state, sharding.shard_batch(experiment.mesh, experiment.train.batch(step - 1)))
    batch = sharding.shard_batch(experiment.mesh, experiment.train.batch(error.step - 1))
    report = {
        "step": error.step,
        "loss": float(error.metrics["loss"]),
        "grad_norm": float(error.metrics["grad_norm"]),
        "gradients": _not_finite_gradients(experiment, state, batch),
        "parameters_before": not_finite(state.params),
    }
    rows = np.asarray(multihost_utils.process_allgather(batch, tiled=True))
    kept = f"{folder.broken} holds the state before step {error.step}, its batch and a report"
    try:
        _keep_state(experiment, folder, state, dataclasses.replace(progress, step=error.step - 1))
    except DiskFullError as full:
        kept = f"nothing of the step is kept, as {full.cause}"
    after, metrics = step_fn(state, batch)
    report["parameters_after"] = not_finite(after.params)
    if processes.is_first() and folder.broken.is_dir():
        np.save(folder.broken / "batch.npy", rows)
        write_atomically(folder.broken / "report.json", json.dumps(finite(report), indent=2).encode())
    if metrics["finite"]:
        return NonFiniteError(
            f"{_symptoms(error)}; taken again from step {progress.step} on, the same step is finite",
            f"resume; if this happens again, suspect the machine; {kept}",
        )
    good = f"checkpoints up to step {progress.step} are good" if progress.step else "no checkpoint had been saved"
    return NonFiniteError(
        f"{_symptoms(error)}{_named(report)}",
        f"start anew in another run_folder with a lower optimizer.learning_rate; {good}; {kept}",
    )


def not_finite(tree: Tree) -> Counts:
    """Returns what of a tree of parameters is infinite or NaN, by path, and in which layers where these are stacked."""
    return _report(tree, jax.jit(_counts)(tree))


def _not_finite_gradients(experiment: Experiment, state: TrainState, batch: jax.Array) -> Counts:
    # An optimizer that counts and moves nothing: the gradient is taken as in training, part of a batch by part.
    counting = optax.GradientTransformation(
        _counts, lambda grads, _, params=None: (jax.tree.map(jnp.zeros_like, grads), _counts(grads))
    )
    step = make_train_step(experiment.objective, counting, experiment.config.train.accumulate)

    @jax.jit
    def counts(state: TrainState, batch: jax.Array) -> Any:
        return step(dataclasses.replace(state, opt_state=counting.init(state.params)), batch)[0].opt_state

    return _report(state.params, counts(state, batch))


def _counts(tree: Tree) -> Tree:
    """Values that are not finite, i32[] of each leaf, i32[L] of stacked ones."""

    def count(key_path: Any, leaf: jax.Array) -> jax.Array:
        stacked = "layers" in path_string(key_path).split("/")
        return jnp.sum(~jnp.isfinite(leaf), axis=tuple(range(int(stacked), leaf.ndim)), dtype=jnp.int32)

    return jax.tree_util.tree_map_with_path(count, tree)


def _report(tree: Tree, counts: Tree) -> Counts:
    found: Counts = {}
    sizes = {path_string(key_path): leaf.size for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(counts)):
        path = path_string(key_path)
        if leaf.any():
            layers = np.flatnonzero(leaf).tolist() if leaf.ndim else []
            found[path] = {"not_finite": int(leaf.sum()), "size": sizes[path], "layers": layers}
    return found


def _keep_state(experiment: Experiment, folder: RunFolder, state: TrainState, progress: Progress) -> None:
    if processes.is_first():
        shutil.rmtree(folder.broken, ignore_errors=True)
    processes.wait_for_all("broken folder removed")
    try:
        with opened(folder.broken / "checkpoints") as checkpoints:
            checkpoints.save(state, progress, experiment.config)
    except DiskFullError:
        shutil.rmtree(folder.broken, ignore_errors=True)
        raise


def _symptoms(error: BrokenStep) -> str:
    loss, norm = error.metrics["loss"], error.metrics["grad_norm"]
    update = ", and the parameters' norm after the update is not finite" if np.isfinite([loss, norm]).all() else ""
    return f"step {error.step}: loss {loss}, gradient norm {norm}{update}"


def _named(report: Mapping[str, Any]) -> str:
    """The tensors that broke first: what was broken before the step, else the gradients, else what the update made."""
    kinds = {"parameters_before": "before it", "gradients": "gradients", "parameters_after": "after the update"}
    for kind, words in kinds.items():
        counts: Counts = report[kind]
        if counts:
            tensors = [_tensor(path, entry) for path, entry in list(counts.items())[:NAMED]]
            more = len(counts) - len(tensors)
            return f"; not finite, {words}: {', '.join(tensors)}" + (f" and {more} more" if more else "")
    return ""


def _tensor(path: str, entry: Mapping[str, Any]) -> str:
    layers = entry["layers"]
    where = f" in {'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))}" if layers else ""
    return f"{path} ({entry['not_finite']:,} of {entry['size']:,}{where})"
