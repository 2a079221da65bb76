"""The training of one batch of points, each of which leaves the run folder of an ordinary run.

The step, the data, the evaluation and the files are those of `lowbit.train`. What needs a state to itself is left out:
there are no checkpoints, so that a batch that was interrupted starts anew, and no flight recorder.
"""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.distill.objectives import PARTS
from lowbit.errors import ConfigError
from lowbit.evals import Evaluation, evaluate
from lowbit.strict_json import finite
from lowbit.sweep.lanes import Alone, Lanes, Together
from lowbit.sweep.points import Point
from lowbit.train.adapters import model_rules
from lowbit.train.metrics import Log, Meter
from lowbit.train.results import Result, as_record
from lowbit.train.run_folder import RunFolder
from lowbit.train.setup import Experiment, prepare
from lowbit.train.state import TrainState
from lowbit.train.step import Metrics


class Program:
    """What the points of one shape share: model, data, objective, and the compiled step.

    Args:
      points: all points that will be trained with it, of one program (`programs.make_groups`).
      layers: of the model.

    Raises:
      LowbitError: as `lowbit.train.prepare`.
    """

    def __init__(self, points: Sequence[Point], layers: int):
        self._layers = layers
        self._widths_differ = len({_widths(point.config) for point in points}) > 1
        first = self._traced(points[0].config)
        self._shared = prepare(first)
        self._of_seed = {first.seed: self._shared}
        self._lanes: dict[int, Lanes] = {}

    def experiment(self, point: Point) -> Experiment:
        """Returns the experiment of a point: what is compiled is shared, what is data is its own."""
        config = self._traced(point.config)
        if config.seed not in self._of_seed:
            self._of_seed[config.seed] = prepare(config)  # the order of the data, and perhaps the weights at the start
        own = self._of_seed[config.seed]
        return dataclasses.replace(own, config=config, rules=tuple(model_rules(config)))

    def lanes(self, count: int) -> Lanes:
        """Returns what trains `count` points; the same one for the same count, as it is compiled for them."""
        if count not in self._lanes:
            self._lanes[count] = Alone(self._shared) if count == 1 else Together(self._shared, count)
        return self._lanes[count]

    def _traced(self, config: ConfigDict) -> ConfigDict:
        """The config with its width as data, where the points have several."""
        if not self._widths_differ or config.quant.layer_bits:
            return config
        traced = config.copy_and_resolve_references()
        with traced.unlocked():
            traced.quant.layer_bits = (config.quant.bits,) * self._layers
        return traced.lock()


def _widths(config: ConfigDict) -> tuple[float, ...]:
    return tuple(config.quant.layer_bits) or (config.quant.bits,)


@dataclasses.dataclass
class _Lane:
    """A point in training: what it writes to, and why it stopped if it did."""

    point: Point
    experiment: Experiment
    folder: RunFolder
    log: Log
    error: str | None = None


def train_batch(program: Program, points: Sequence[Point]) -> list[str | None]:
    """Trains points side by side and writes their run folders; what was in these is removed.

    Returns:
      For each point None, or the error of one whose loss, gradient or parameters left the numbers; it has no
      result.json then, and the others go on.

    Raises:
      ConfigError: so many points do not fit into the device's memory.
    """
    began = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            lanes = [stack.enter_context(_opened(program.experiment(point), point)) for point in points]
            _Batch(program.lanes(len(points)), lanes, began).to_the_end()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"{len(points)} points at once do not fit into the memory of {jax.devices()[0].device_kind}",
            "lower --points-at-once, and go on with --resume",
        ) from error
    return [lane.error for lane in lanes]


@contextlib.contextmanager
def _opened(experiment: Experiment, point: Point) -> Iterator[_Lane]:
    folder = RunFolder(Path(point.config.run_folder))
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.create(point.config, experiment.cfg, experiment.tokenizer_files)
    steps, board = configs.steps(point.config), point.config.log.tensorboard
    with Log(folder, start=0, steps=steps, progress=False, tensorboard=board) as log:
        yield _Lane(point, experiment, folder, log)


class _Batch:
    """One pass over the steps. As in the loop, metrics are read a log point later than they are made."""

    def __init__(self, program: Lanes, lanes: Sequence[_Lane], began: float):
        self.program, self.lanes, self.began = program, lanes, began
        self.config = lanes[0].experiment.config
        self.steps = configs.steps(self.config)
        self.meter = Meter()
        self.waiting: list[tuple[int, Metrics]] = []

    def to_the_end(self) -> None:
        state = self.program.start([lane.experiment for lane in self.lanes])
        every = self.config.evaluation.every_steps
        recent: list[tuple[int, Metrics]] = []
        bar = tqdm(
            total=self.steps,
            unit="step",
            desc=f"{len(self.lanes)} points" if len(self.lanes) > 1 else self.lanes[0].point.name,
            disable=not self.config.log.progress,
            dynamic_ncols=True,
        )
        with bar:
            for step in range(1, self.steps + 1):
                state, metrics = self.program.step(state, self.batches(step - 1))
                bar.update()
                recent.append((step, metrics))
                if step == 1:
                    jax.block_until_ready(metrics)  # compilation is no part of the speed
                    self.meter.restart(self.tokens(step))
                if step % self.config.log.every_steps == 0:
                    self.report(self.waiting)
                    self.waiting, recent = recent, []
                if step == self.steps or (every and step % every == 0):
                    self.report(self.waiting, steady=False)
                    self.report(recent, steady=False)
                    self.waiting, recent = [], []
                    self.evaluate(state, step)
                    self.meter.restart(self.tokens(step))
                if all(lane.error for lane in self.lanes):
                    return

    def batches(self, step: int) -> list[np.ndarray]:
        """The batch of each lane; one for all where their orders are the same."""
        by_seed = {lane.experiment.config.seed: lane.experiment.train for lane in self.lanes}
        read = {seed: train.batch(step) for seed, train in by_seed.items()}
        return list(read.values()) if len(read) == 1 else [read[lane.experiment.config.seed] for lane in self.lanes]

    def tokens(self, step: int) -> int:
        """Tokens of one lane."""
        return step * self.lanes[0].experiment.train.tokens_per_batch

    def seconds(self) -> float:
        """A lane's share of the time that the batch has taken."""
        return (time.monotonic() - self.began) / len(self.lanes)

    def report(self, steps: list[tuple[int, Metrics]], steady: bool = True) -> None:
        """Reads the metrics of steps, takes broken lanes out, and logs the last step if it is a log point."""
        if not steps:
            return
        fetched = jax.device_get([metrics for _, metrics in steps])
        for (step, _), metrics in zip(steps, fetched, strict=True):
            for index, lane in enumerate(self.lanes):
                if lane.error is None and not metrics["finite"][index]:
                    loss, norm = metrics["loss"][index], metrics["grad_norm"][index]
                    lane.error = f"step {step}: loss {loss}, gradient norm {norm}, or an update that is not finite"
        step, metrics = steps[-1][0], fetched[-1]
        if step % self.config.log.every_steps and step != self.steps:
            return
        # The time of the first step is the compiler's.
        speed = None if step == 1 else self.meter.interval(self.tokens(step))
        for index, lane in enumerate(self.lanes):
            if lane.error is None:
                lane.log.training(
                    {
                        "step": step,
                        "tokens": self.tokens(step),
                        "loss": float(metrics["loss"][index]),
                        "lr": float(metrics["learning_rate"][index]),
                        "grad_norm": float(metrics["grad_norm"][index]),
                        "param_norm": float(metrics["param_norm"][index]),
                        **{name: float(metrics[name][index]) for name in PARTS if name in metrics},
                        "tokens_per_s": speed if steady else None,
                        "elapsed": self.seconds(),
                    }
                )

    def evaluate(self, state: TrainState, step: int) -> None:
        """Evaluates every lane that is well, and after the last step writes what each came to."""
        evaluations: dict[int, dict[str, Evaluation]] = {}
        for index, lane in enumerate(self.lanes):
            if lane.error is not None:
                continue
            evaluations[index] = {}
            for name, windows in lane.experiment.valid.items():
                evaluation = evaluate(
                    functools.partial(self.program.nll, state, index),
                    windows,
                    batch_size=self.config.evaluation.batch_size,
                    first=self.config.evaluation.windows or None,
                    byte_lengths=lane.experiment.byte_lengths,
                )
                evaluations[index][name] = evaluation
                lane.log.evaluation({"step": step, "text": name, **dataclasses.asdict(evaluation)})
        if step == self.steps:
            seconds = self.seconds()
            for index, results in evaluations.items():
                self.finish(self.lanes[index], results, seconds)

    def finish(self, lane: _Lane, evaluations: dict[str, Evaluation], seconds: float) -> None:
        """Writes result.json as a run of the point's own config does."""
        result = Result(
            run_folder=lane.folder.path,
            finished=True,
            step=self.steps,
            tokens=self.tokens(self.steps),
            seconds=seconds,
            tokens_per_s=self.meter.overall,
            evaluations=evaluations,
        )
        config = lane.point.config
        own = dataclasses.replace(lane.experiment, config=config, rules=tuple(model_rules(config)))
        lane.folder.write_result(finite(as_record(result, own)))
