"""Checkpoints of a run: written beside the training, whole or not at all, and read back onto any mesh.

A checkpoint has three parts: "model" (what is needed to evaluate or export), "training" (optimizer state and the
constants' remainder), "meta" (config, shapes, data position and fingerprint, as JSON).
"""

import contextlib
import dataclasses
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lowbit.config import ConfigDict, differences, from_json, to_json
from lowbit.errors import CheckpointError, ConfigError, DiskFullError, LowbitError
from lowbit.train import processes
from lowbit.train.disk import check_room, full_disk_explained
from lowbit.train.optimizers import leaf_paths
from lowbit.train.state import TrainState

FREE = ("run_folder", "data.train", "data.valid", "checkpoint", "log", "mesh")
"""What may differ between a run and its continuation: none decides what is learned (data goes by its fingerprint)."""

MEANING = ("quant", "adapters", "activations")
"""Sections of a config that say what the arrays of a checkpoint stand for."""

MODEL_COLLECTIONS = ("params", "quant", "grid")


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands, beside its arrays.

    Attributes:
      step: steps done; the next batch is `batch(step)`.
      tokens: tokens seen.
      elapsed: seconds spent, over all parts of the run.
      data: fingerprint of the training data, order included.
      teacher: fingerprint of the teacher; "" where none teaches.
    """

    step: int
    tokens: int
    elapsed: float
    data: str
    teacher: str = ""


class Checkpoints:
    """The checkpoints in one folder; saving is asynchronous, at most `keep` finished ones stay."""

    def __init__(self, folder: Path, keep: int = 2):
        if keep < 1:
            raise ConfigError(f"checkpoint.keep={keep} keeps nothing", "keep at least 1 checkpoint")
        self.folder = folder.resolve()
        self._failed = False
        _quiet_orbax()
        if processes.is_first():
            self._remove_partial()  # of a process that was killed: a run killed often would fill the disk with them
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_handlers=_handlers(),
        )

    def save(self, state: TrainState, progress: Progress, config: ConfigDict) -> None:
        """Starts writing a checkpoint of `progress.step`; returns when the arrays may be overwritten.

        One is on its way at most: a second waits for the first. An error of the first is raised by the second, by
        `wait`, or by `close`, whichever comes next.

        Raises:
          DiskFullError: there is no room; what of it had been written is removed, and the checkpoints before stay.
        """
        if progress.step in self._manager.all_steps():
            return
        self.wait()
        model, training = _parts(state)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((model, training)))
        # All or none: who went on alone would wait for the others for ever.
        if processes.any_of(shutil.disk_usage(self.folder).free < size):
            check_room(self.folder, size, f"checkpoint {progress.step}")
        meta = {"config": to_json(config), "progress": dataclasses.asdict(progress), "shapes": _shapes(model)}
        with self._full_disk_explained():
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, oldest first, the one on its way included."""
        return sorted(self._manager.all_steps())

    def check(self, config: ConfigDict) -> None:
        """Refuses a folder whose newest readable checkpoint is of another config.

        Raises:
          CheckpointError: names the keys that differ.
          ConfigError: the checkpoint is of a version with other keys.
        """
        for step in reversed(self.steps()):
            try:
                meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
                saved = from_json(meta["config"], f"checkpoint {step} in {self.folder}")
            except LowbitError:
                raise
            except Exception:
                continue
            keys = [key for key in differences(saved, config) if not _is_free(key)]
            if keys:
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} is of another config: {', '.join(keys)} differ",
                    "resume with the config of the run, or give another run_folder",
                )
            return

    def restore(self, like: TrainState, fingerprint: str, teacher: str = "") -> tuple[TrainState, Progress] | None:
        """Returns the newest readable checkpoint on the shardings of `like`, or None if the folder has none.

        One that cannot be read is reported as a warning, and the one before it is tried; once that has been read, the
        broken ones are set aside. What a broken byte makes Orbax and TensorStore raise is not documented: any exception
        counts, so everything else that could differ is compared before.

        Args:
          like: a state of the run's shapes and shardings (arrays or `jax.ShapeDtypeStruct`); its constants outside of
            the model's collections (a teacher) are passed on, as they are not saved.
          fingerprint: of the run's training data.
          teacher: fingerprint of the run's teacher; "" where none teaches.

        Raises:
          CheckpointError: there are checkpoints and none can be read, or the newest is of a model of another shape (the
            message names the parameter) or was made with other data or another teacher. Nothing has been moved then.
        """
        model, training = jax.tree.map(ocp.utils.to_shape_dtype_struct, _parts(like))
        broken: list[int] = []
        for step in reversed(self.steps()):
            failure: Exception | None = None
            try:
                meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
                progress, shapes = Progress(**meta["progress"]), dict(meta["shapes"])
            except Exception as error:
                failure = error
            # All or none: who read it alone would go on from another step than the others.
            if processes.any_of(failure is not None):
                self._warn(step, failure)
                broken.append(step)
                continue
            self._check_shapes(step, shapes, _shapes(model))
            if progress.data != fingerprint:
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} was made with other training data",
                    "resume with the files the run began with, or give another run_folder",
                )
            if progress.teacher != teacher:
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} was made with another teacher",
                    "resume with the model that distill.teacher named then, unchanged, or give another run_folder",
                )
            try:
                parts = self._restore(
                    step, model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training)
                )
                state = _state(parts["model"], parts["training"], like)
            except Exception as error:
                failure = error
            if processes.any_of(failure is not None):
                self._warn(step, failure)
                broken.append(step)
                continue
            self._set_aside(broken)
            return state, progress
        if broken or self._aside.is_dir():
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read",
                "put one back from a copy"
                + (f" or from {self._aside}" if self._aside.is_dir() else "")
                + ", or start again in another run_folder",
            )
        return None

    def wait(self) -> None:
        """Returns when everything is on disk; raises what `save` does."""
        with self._full_disk_explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that write; raises what `save` does."""
        try:
            with self._full_disk_explained():
                self._manager.close()
        finally:
            if self._failed:
                self._remove_partial()  # the threads that write have ended, which the first removal had overtaken

    @contextlib.contextmanager
    def _full_disk_explained(self) -> Iterator[None]:
        try:
            with full_disk_explained(self.folder):
                yield
        except DiskFullError:
            self._failed = True
            self._remove_partial()  # makes room for the logs
            raise

    def _remove_partial(self) -> None:
        for partial in self.folder.glob("*.orbax-checkpoint-tmp*"):  # as Orbax names what it has not finished
            shutil.rmtree(partial, ignore_errors=True)

    def _restore(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    @property
    def _aside(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.unreadable")

    def _set_aside(self, steps: list[int]) -> None:
        # Out of the way of checkpoints that will be written at the same steps; not deleted: who knows why they broke.
        if not steps:
            return
        processes.wait_for_all("checkpoints read")
        if processes.is_first():
            self._aside.mkdir(exist_ok=True)
            for step in steps:
                shutil.rmtree(self._aside / str(step), ignore_errors=True)
                (self.folder / str(step)).rename(self._aside / str(step))
        processes.wait_for_all("broken checkpoints set aside")
        self._manager.reload()

    def _warn(self, step: int, error: Exception | None) -> None:
        why = "another process says so" if error is None else _first_line(error)
        warnings.warn(
            f"checkpoint {step} in {self.folder} cannot be read ({why}); going back to the one before",
            stacklevel=3,
        )

    def _check_shapes(self, step: int, saved: dict[str, list[int]], own: dict[str, list[int]]) -> None:
        for path in sorted(saved.keys() | own.keys()):
            if saved.get(path) != own.get(path):
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} is of another model: {path} has shape "
                    f"{saved.get(path, 'none')} in it, {own.get(path, 'none')} in the model to resume",
                    "resume with the model.source that the run began with, or give another run_folder",
                )


@contextlib.contextmanager
def opened(folder: Path, keep: int = 2) -> Iterator[Checkpoints]:
    """Opens the checkpoints of a folder, and closes them however the block ends."""
    checkpoints = Checkpoints(folder, keep)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def load_model(
    folder: Path, shapes: dict[str, Any], config: ConfigDict, step: int | None = None
) -> tuple[dict[str, Any], int]:
    """Returns ({"params", "quant", "grid"} on the first device, step) of one checkpoint.

    Args:
      folder: of the checkpoints.
      shapes: the collections' arrays as `jax.ShapeDtypeStruct`.
      config: of the run, which says what the arrays mean.
      step: of the checkpoint; None takes the newest that can be read.

    Raises:
      CheckpointError: there is none, none of this step, or the config gives its arrays another meaning than they had.
    """
    mend = "train first, or name the folder of a run"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} holds no checkpoints", mend)
    _quiet_orbax()
    options = ocp.CheckpointManagerOptions(read_only=True)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    with ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=_handlers()) as manager:
        kept = sorted(manager.all_steps(), reverse=True)
        if step is not None and step not in kept:
            raise CheckpointError(
                f"{folder} has no checkpoint of step {step}",
                f"name a step that it has: {', '.join(map(str, reversed(kept))) or 'none'}",
            )
        for tried in kept if step is None else [step]:
            try:
                kept_with = manager.restore(tried, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
                _check_meaning(from_json(kept_with["config"], f"checkpoint {tried} in {folder}"), config, tried, folder)
                parts = manager.restore(tried, args=ocp.args.Composite(model=ocp.args.StandardRestore(target)))
            except LowbitError:
                raise
            except Exception as error:
                warnings.warn(f"checkpoint {tried} in {folder} cannot be read ({_first_line(error)})", stacklevel=2)
                continue
            return parts["model"], tried
    if step is not None:
        raise CheckpointError(f"checkpoint {step} in {folder} cannot be read", "name another step, or another run")
    raise CheckpointError(f"{folder} holds no readable checkpoint", mend)


def _check_meaning(saved: ConfigDict, config: ConfigDict, step: int, folder: Path) -> None:
    keys = [key for key in differences(saved, config) if key.partition(".")[0] in MEANING]
    if keys:
        raise CheckpointError(
            f"checkpoint {step} in {folder} was written by another config than lies here: {', '.join(keys)} differ",
            "put the config.json of the run back, whose weights would mean something else by this one",
        )


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _handlers() -> dict[str, Any]:
    return {
        "model": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }


def _parts(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's collections as `model.apply` takes them, and what only training needs."""
    variables = state.variables
    model = {name: variables[name] for name in MODEL_COLLECTIONS if name in variables}
    return model, {"step": state.step, "opt_state": state.opt_state}


def _shapes(model: dict[str, Any]) -> dict[str, list[int]]:
    return {path: list(leaf.shape) for path, leaf in zip(leaf_paths(model), jax.tree.leaves(model), strict=True)}


def _first_line(error: Exception, most: int = 200) -> str:
    """TensorStore appends its whole specification, tens of kilobytes, to a message."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def _state(model: dict[str, Any], training: dict[str, Any], like: TrainState) -> TrainState:
    """Cuts restored parts into params and constants as `like` is cut."""

    def pick(tree: Any, source: Any) -> Any:
        if not isinstance(tree, dict):
            return source
        return {key: pick(value, source[key]) for key, value in tree.items()}

    own = {name: pick(tree, model[name]) for name, tree in like.constants.items() if name in MODEL_COLLECTIONS}
    params = {name: pick(tree, model[name]) for name, tree in like.params.items()}
    return TrainState(training["step"], params, like.constants | own, training["opt_state"])


def _quiet_orbax() -> None:
    # Each save would print a dozen lines over the progress bar, and a failed one pages, though it is raised as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
