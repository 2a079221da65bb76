"""What the loop around the step costs the host: reading, placing, bookkeeping, logging.

Counted is processor time of the thread that starts steps, between one batch read and the next, and of the same steps
started bare. It is spent while the devices compute: the loop reads a step's metrics one log point later, so that
training is slower for it only where a step takes less than the loop's own time.

Command: python -m benchmarks.loop_cost -o docs/results/loop_cost_cpu.json
Hardware: any; a small random model, since the figure does not depend on its size.
Expected: docs/survival.md.
"""

import argparse
import dataclasses
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.config import base, override, shrink
from lowbit.train import Experiment, make_train_step, prepare, sharding, train

WARM = 15
"""Steps before the first that counts: compilation, and the first log points."""


def make_experiment(folder: Path, steps: int, log_every: int) -> Experiment:
    """Returns a small run of so many steps on random tokens."""
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 64, 100_000).astype(np.uint16))
    config = base()
    settings = {
        "run_folder": folder / "run",
        "data.train": folder / "tokens.npy",
        "model.architecture.vocab_size": 64,
        "model.compute_dtype": "float32",
        "train.tokens": 256 * steps,
        "log.every_steps": log_every,
        "log.recorder_every_steps": 0,
        "log.progress": "false",
        "checkpoint.every_minutes": "inf",
    }
    override(shrink(config), [f"{key}={value}" for key, value in settings.items()])
    return prepare(config)


def bare_seconds(experiment: Experiment, steps: int) -> float:
    """Returns seconds a step of processor time to start steps, with their batches in place."""
    state = experiment.initial_state()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = sharding.jit_train_step(
        make_train_step(experiment.objective, experiment.optimizer), experiment.mesh, shardings
    )
    batches = [sharding.shard_batch(experiment.mesh, experiment.train.batch(i)) for i in range(WARM + steps)]
    metrics: Any = None
    for i, batch in enumerate(batches):
        if i == WARM:
            jax.block_until_ready(metrics)
            began = time.thread_time()
        state, metrics = step_fn(state, batch)
    seconds = time.thread_time() - began
    jax.block_until_ready(metrics)
    return seconds / steps


def loop_seconds(experiment: Experiment, steps: int) -> float:
    """Returns seconds a step of processor time of the whole loop, from one batch read to the next."""
    marks: list[float] = []

    class Marked(type(experiment.train)):  # type: ignore[misc]
        """Notes when a batch is read."""

        def batch(self, step: int) -> Any:
            marks.append(time.thread_time())
            return super().batch(step)

    fields = {field.name: getattr(experiment.train, field.name) for field in dataclasses.fields(experiment.train)}
    train(dataclasses.replace(experiment, train=Marked(**fields)))
    return (marks[WARM + steps - 1] - marks[WARM - 1]) / steps


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="that count, in each timing")
    parser.add_argument(
        "--log-every", type=int, default=10, help="steps between log points; those of the config's base"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timings of each kind, in turns")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; nothing prints it")
    options = parser.parse_args(argv)
    bare, loop = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            experiment = make_experiment(Path(folder), WARM + options.steps, options.log_every)
            bare.append(bare_seconds(experiment, options.steps))
            loop.append(loop_seconds(experiment, options.steps))
    record = {
        "benchmark": "loop_cost",
        "command": "python -m benchmarks.loop_cost " + shlex.join(sys.argv[1:] if argv is None else argv),
        **machine(0),
        "log_every_steps": options.log_every,
        "bare_host_seconds": bare,
        "loop_host_seconds": loop,
        "loop_over_bare_seconds": statistics.median(loop) - statistics.median(bare),
    }
    write_record(record, options.output)


if __name__ == "__main__":
    main()
