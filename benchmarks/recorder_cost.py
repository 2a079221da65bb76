"""What the flight recorder costs: seconds of a record against seconds of a step, and bytes of its reference.

Steps without and with a record are timed in turns, and records by themselves, which resolves what is far below the
noise of a step. A record's time includes what the host does: fetching, rounding, and writing its line.

Command: python -m benchmarks.recorder_cost --shape smollm2-135m -o docs/results/recorder_cost_135m_h100.json
Hardware: any; random weights of a public shape, or those of a folder (--model assets/quickstart/model).
Expected: docs/recorder.md.
"""

import argparse
import dataclasses
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.machine import machine
from benchmarks.record import write_record
from benchmarks.shapes import SHAPES
from benchmarks.train_cases import Bench, Case, case_config, make_bench, run_steps
from lowbit.config import base
from lowbit.models import pretrained
from lowbit.train import TrainState
from lowbit.train.recorder import Recorder, watched_quantizers
from lowbit.train.run_folder import RunFolder
from lowbit.tree import flatten

BOUND = 0.01
"""The share of training time that recording may take."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the model")
    parser.add_argument("--model", metavar="FOLDER", help="a pretrained model in place of random weights of a shape")
    parser.add_argument("--bits", default="2", help="of the quantized matrices")
    parser.add_argument("--batch", type=int, default=32, help="sequences")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the config")
    parser.add_argument("--steps", type=int, default=5, help="steps of one timing")
    parser.add_argument("--records", type=int, default=5, help="records of one timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    case = Case(options.bits, (1, 1, 1))
    config = case_config(case, ["log.recorder_every_steps=1", *options.set], options.batch, options.length)
    loaded = None if options.model is None else pretrained.load(options.model)
    bench = make_bench(case, config, SHAPES[options.shape] if loaded is None else loaded.cfg, options.seed)
    state = bench.start(jax.random.key(options.seed))
    # Published weights are of 16 bits: random ones are rounded to them, so that the reference is as small.
    params = jax.tree.map(_sixteen_bits, state.params["params"]) if loaded is None else loaded.params
    experiment = dataclasses.replace(bench.experiment, params=params)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with Recorder(experiment, RunFolder(Path(folder)), start=0, steps=10**9) as recorder:
            start_seconds = time.perf_counter() - began
            plain, recorded, alone = _timings(bench, recorder, state, options)
        line = len((Path(folder) / "recorder.jsonl").read_bytes().splitlines()[-1])
    step, record = statistics.median(plain), statistics.median(alone)
    quantized = watched_quantizers(experiment.rules, experiment.params)
    every = base().log.recorder_every_steps
    weights = sum(leaf.size for path, leaf in flatten(params).items() if path in quantized)
    return {
        "benchmark": "recorder_cost",
        "command": "python -m benchmarks.recorder_cost " + shlex.join(options.argv),
        **machine(options.seed),
        "model": options.model or options.shape,
        "bits": float(options.bits),
        "batch_size": options.batch,
        "sequence_length": options.length,
        "quantized_weights": weights,
        "start_seconds": start_seconds,
        "step_seconds": plain,
        "recorded_step_seconds": recorded,
        "record_seconds": alone,
        "record_over_step": record / step,
        "bytes_per_record": line,
        "default_every_steps": every,
        "cost_at_default": record / (every * step),
        "least_every_steps_within_bound": math.ceil(record / (BOUND * step)),
        "bound": BOUND,
    }


def _timings(
    bench: Bench, recorder: Recorder, state: TrainState, options: argparse.Namespace
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of plain steps, of recorded ones and of records alone, one of each in turn."""
    number = 0

    def recorded(state: TrainState, step: Callable[..., Any], times: int) -> tuple[TrainState, float]:
        nonlocal number
        began = time.perf_counter()
        for _ in range(times):
            number += 1
            state, metrics = recorder.watch(number, step, state, bench.batch)
            jax.block_until_ready(metrics)
            recorder.write(number)
        return state, (time.perf_counter() - began) / times

    def standing(state: TrainState, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return state, {}

    state, _ = run_steps(bench, state, 1)
    state, _ = recorded(state, bench.step, 1)
    plain, watched, alone = [], [], []
    for _ in range(options.repeats):
        began = time.perf_counter()
        state, _ = run_steps(bench, state, options.steps)
        plain.append((time.perf_counter() - began) / options.steps)
        state, seconds = recorded(state, bench.step, options.steps)
        watched.append(seconds)
        state, seconds = recorded(state, standing, options.records)
        alone.append(seconds)
    return plain, watched, alone


def _sixteen_bits(w: jax.Array) -> np.ndarray:
    return np.asarray(jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    options = parse_arguments(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    record = measure(options)
    print(
        f"step {statistics.median(record['step_seconds']):.4f} s, record "
        f"{statistics.median(record['record_seconds']):.4f} s: {record['cost_at_default']:.2%} at every "
        f"{record['default_every_steps']} steps; within {BOUND:.0%} from every "
        f"{record['least_every_steps_within_bound']}",
        file=sys.stderr,
    )
    write_record(record, options.output)


if __name__ == "__main__":
    main()
