"""The loop around the pure step: data, checkpoints, evaluation, logs, and an end in good order."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.data.coreset import CoresetDataset
from lowbit.distill.objectives import PARTS
from lowbit.evals import Evaluation, evaluate
from lowbit.locks import check_free, sole_writer
from lowbit.models.placement import on_mesh
from lowbit.strict_json import finite
from lowbit.train import processes, sharding
from lowbit.train.broken import BrokenStep, examine
from lowbit.train.checkpoints import Checkpoints, Progress, opened
from lowbit.train.coreset import Chooser
from lowbit.train.disk import full_disk_explained
from lowbit.train.metrics import Log, Meter
from lowbit.train.objectives import nll_function
from lowbit.train.recorder import Recorder
from lowbit.train.results import Result, as_record
from lowbit.train.run_folder import RunFolder
from lowbit.train.setup import Experiment, prepare
from lowbit.train.signals import Clock, stop_on_sigterm
from lowbit.train.state import TrainState
from lowbit.train.step import Metrics, TrainStep, make_train_step


def run(config: ConfigDict, *, resume: bool = False) -> Result:
    """Trains what a config describes, in its run folder.

    On several machines each process calls this, after `lowbit.train.distributed.connect` and before anything else of
    jax, with the same config and a run folder on a file system that all of them see: the first process writes the
    folder's files and logs, and every process its share of the checkpoints.

    Args:
      config: from `lowbit.config.load`.
      resume: go on from the newest checkpoint of the run folder; without one the run starts over.

    Raises:
      LowbitError: anything wrong with config, files or folder, before any work.
      NonFiniteError: loss, gradient or parameters left the numbers; the last good checkpoint stays, and
        `lowbit.train.broken` has kept the step.
      DiskFullError: the run folder's disk is full; the last good checkpoint stays.
      ProcessError: another process of the run is lost.
      LockedError: another process is training in the run folder.
    """
    folder = RunFolder(Path(config.run_folder).expanduser())
    folder.check(resume)
    if resume and processes.is_first():
        check_free(folder.path)
    # No process comes to `train`, where the first one makes the folder, before all have looked.
    processes.wait_for_all("run folder looked at")
    if resume and folder.checkpoints.is_dir():
        with opened(folder.checkpoints) as checkpoints:
            checkpoints.check(config)
    return train(prepare(config), resume=resume)


def train(experiment: Experiment, *, resume: bool = False) -> Result:
    """Trains a prepared experiment; `run` is this after `prepare`."""
    config = experiment.config
    folder = RunFolder(Path(config.run_folder).expanduser())
    clock = Clock(config.checkpoint.every_steps, config.checkpoint.every_minutes)

    def start(resume: bool) -> tuple[TrainState, Progress]:
        at_zero = Progress(0, 0, 0.0, experiment.train.fingerprint(), experiment.teacher)
        restored = None
        if resume:
            restored = checkpoints.restore(experiment.restorable_state(), at_zero.data, at_zero.teacher)
        return restored or (experiment.initial_state(), at_zero)

    with (
        _claimed(folder, experiment, resume),
        full_disk_explained(folder.path),
        processes.losses_explained(),
        opened(folder.checkpoints, config.checkpoint.keep) as checkpoints,
        stop_on_sigterm() as stop,
    ):
        state, progress = start(resume)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        step_fn = sharding.jit_train_step(
            make_train_step(experiment.objective, experiment.optimizer, config.train.accumulate),
            experiment.mesh,
            shardings,
        )
        with (
            Log(
                folder,
                start=progress.step,
                steps=configs.steps(config),
                progress=config.log.progress,
                tensorboard=config.log.tensorboard,
                writes=processes.is_first(),
            ) as log,
            Recorder(
                experiment, folder, start=progress.step, steps=configs.steps(config), writes=processes.is_first()
            ) as recorder,
        ):
            nll = evaluator(experiment, shardings)
            chooser = make_chooser(experiment, shardings)
            one_pass = _Run(
                experiment, folder, checkpoints, clock, log, recorder, stop, progress, step_fn, nll, chooser
            )
            try:
                return one_pass.to_the_end(state)
            except BrokenStep as error:
                # Without its traceback, which keeps the broken state alive: there may be no room for two.
                broken = error.with_traceback(None)
            del state
            checkpoints.wait()
            raise examine(broken, experiment, folder, functools.partial(start, True), step_fn)


@contextlib.contextmanager
def _claimed(folder: RunFolder, experiment: Experiment, resume: bool) -> Iterator[None]:
    """Makes the run folder, or finds it where it is resumed, and keeps it for this run: its first process holds it."""
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            folder.check(resume)
            if not resume:
                folder.create(experiment.config, experiment.cfg, experiment.tokenizer_files)
            with full_disk_explained(folder.path):
                stack.enter_context(sole_writer(folder.path))
        processes.wait_for_all("run folder made")
        yield


class _Run:
    """One pass of the loop. Steps are only started here; their metrics are read a log point later."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        checkpoints: Checkpoints,
        clock: Clock,
        log: Log,
        recorder: Recorder,
        stop: threading.Event,
        start: Progress,
        step_fn: TrainStep,
        nll: Callable[[TrainState, np.ndarray], jax.Array],
        chooser: Chooser | None,
    ):
        self.experiment, self.folder, self.checkpoints = experiment, folder, checkpoints
        self.clock, self.log, self.stop, self.start = clock, log, stop, start
        self.recorder, self.step_fn, self.nll, self.chooser = recorder, step_fn, nll, chooser
        self.agreement = processes.Agreement(experiment.mesh)
        self.config = experiment.config
        self.steps = configs.steps(self.config)
        self.began = time.monotonic()
        self.meter = Meter()
        # Started since the last log point, and those before it: the device is at work while the latter are read.
        self.recent: list[tuple[int, Metrics]] = []
        self.waiting: list[tuple[int, Metrics]] = []

    def to_the_end(self, state: TrainState) -> Result:
        every = self.config.evaluation.every_steps
        if every and 0 < self.start.step < self.steps and self.start.step % every == 0:
            # The run was stopped between a checkpoint and the evaluation that was due.
            self.evaluate(state, self.start.step, without=self.log.evaluated(self.start.step))
        for step in range(self.start.step + 1, self.steps + 1):
            if self.chooser is not None and self.chooser.is_due(step - 1):
                self.catch_up()  # a broken state would choose by numbers that are none
                self.chooser.choose(state, step - 1)
                self.meter.restart(self.tokens(step - 1))
            batch = sharding.shard_batch(self.experiment.mesh, self.experiment.train.batch(step - 1))
            state, metrics = self.recorder.watch(step, self.step_fn, state, batch)
            self.recent.append((step, metrics))
            if step == self.start.step + 1:
                jax.block_until_ready(metrics)  # compilation is no part of the speed
                self.meter.restart(self.tokens(step))
            if step % self.config.log.every_steps == 0:
                self.report(self.waiting)
                self.waiting, self.recent = self.recent, []
            late, stopping = self.agreement.any_of(self.clock.late(), self.stop.is_set())
            if ((late or self.clock.due(step)) and step < self.steps) or stopping:
                self.save(state, step)
            if stopping:
                return self.finish(step, finished=False, evaluations={})
            if every and step % every == 0 and step < self.steps:
                self.evaluate(state, step)
        self.save(state, self.steps)
        return self.finish(self.steps, finished=True, evaluations=self.evaluate(state, self.steps))

    def tokens(self, step: int) -> int:
        return step * self.experiment.train.tokens_per_batch

    def elapsed(self) -> float:
        return self.start.elapsed + time.monotonic() - self.began

    def report(self, steps: list[tuple[int, Metrics]], steady: bool = True) -> None:
        """Reads the metrics of steps, refuses to go on from a broken one, and logs the last if it is a log point.

        Their speed is logged only while the device is kept busy (`steady`): waiting for it distorts short intervals.
        """
        fetched = jax.device_get([metrics for _, metrics in steps])
        if steps:
            self.recorder.write(upto=steps[-1][0])  # before a broken step is reported: it shows how it came to that
        for (step, _), metrics in zip(steps, fetched, strict=True):
            if not metrics["finite"]:
                raise BrokenStep(step, metrics)
        if not steps:
            return
        step, metrics = steps[-1][0], fetched[-1]
        tokens = self.tokens(step)
        speed: float | None
        if step == self.start.step + 1:
            speed = None  # its time is the compiler's
        elif step % self.config.log.every_steps == 0 or step == self.steps:
            measured = self.meter.interval(tokens)
            speed = measured if steady else None
        else:
            return
        self.log.training(
            {
                "step": step,
                "tokens": tokens,
                "loss": float(metrics["loss"]),
                "lr": float(metrics["learning_rate"]),
                "grad_norm": float(metrics["grad_norm"]),
                "param_norm": float(metrics["param_norm"]),
                **{name: float(metrics[name]) for name in PARTS if name in metrics},
                "tokens_per_s": speed,
                "elapsed": self.elapsed(),
            }
        )

    def catch_up(self) -> None:
        """Waits for the device and reports every step that has been started."""
        self.report(self.waiting, steady=False)
        self.report(self.recent, steady=False)
        self.waiting, self.recent = [], []

    def save(self, state: TrainState, step: int) -> None:
        """Saves a state known to be good."""
        self.catch_up()
        progress = dataclasses.replace(self.start, step=step, tokens=self.tokens(step), elapsed=self.elapsed())
        self.checkpoints.save(state, progress, self.config)
        self.clock.restart()
        self.agreement.forget()
        self.meter.restart(self.tokens(step))

    def evaluate(self, state: TrainState, step: int, without: Collection[str] = ()) -> dict[str, Evaluation]:
        self.catch_up()
        results = {}
        for name, windows in self.experiment.valid.items():
            if name in without:
                continue
            results[name] = evaluate(
                functools.partial(self.nll, state),
                windows,
                batch_size=self.config.evaluation.batch_size,
                first=self.config.evaluation.windows or None,
                byte_lengths=self.experiment.byte_lengths,
            )
            self.log.evaluation({"step": step, "text": name, **dataclasses.asdict(results[name])})
        self.meter.restart(self.tokens(step))
        return results

    def finish(self, step: int, *, finished: bool, evaluations: dict[str, Evaluation]) -> Result:
        self.checkpoints.wait()
        result = Result(
            run_folder=self.folder.path,
            finished=finished,
            step=step,
            tokens=self.tokens(step),
            seconds=self.elapsed(),
            tokens_per_s=self.meter.overall,
            evaluations=evaluations,
        )
        if finished and processes.is_first():
            self.folder.write_result(finite(as_record(result, self.experiment)))
        return result


def evaluator(experiment: Experiment, shardings: TrainState) -> Callable[[TrainState, np.ndarray], jax.Array]:
    """Returns nll(state, batch i32[b t+1]) -> nats f32[b t], compiled for the mesh."""
    rows = NamedSharding(experiment.mesh, sharding.BATCH)
    nll = nll_function(experiment.model, experiment.config.train.loss_chunks)

    def nats(state: TrainState, batch: jax.Array) -> jax.Array:
        return nll(_model_variables(state), batch)

    compiled = jax.jit(
        on_mesh(experiment.mesh, nats),
        in_shardings=(shardings, rows),
        out_shardings=NamedSharding(experiment.mesh, sharding.REPLICATED),
    )
    return lambda state, batch: compiled(state, sharding.put_whole(batch, rows))


def make_chooser(experiment: Experiment, shardings: TrainState) -> Chooser | None:
    """Returns what chooses windows, None where all are read."""
    if experiment.scorer is None or not isinstance(experiment.train, CoresetDataset):
        return None
    return Chooser(experiment.config, experiment.train, experiment.scorer, shardings, experiment.mesh)


def _model_variables(state: TrainState) -> dict[str, Any]:
    return {name: tree for name, tree in state.variables.items() if name in ("params", "quant", "grid")}
