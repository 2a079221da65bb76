"""What it gains that points of a sweep share a compiled program, and are trained side by side: points an hour.

The same points are trained as runs of their own, one after another through one program, and so many at once under
vmap; each way as `lowbit sweep` does it, with preparation, compilation, evaluation and files. The first batch of a way
pays for the compiler; what later ones take is their median. Rounds of all ways follow each other, and a way's times are
medians over them: a machine that slows down slows all ways down. Data are random tokens, so that losses mean nothing.

Command: python -m benchmarks.sweep_gain -o docs/results/sweeps/gain_h100.json
Hardware: any; the model is the shipped one of 3 M parameters.
Expected: docs/sweeps.md.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from lowbit.atomic import write_atomically
from lowbit.models import pretrained
from lowbit.sweep import Sweep, product, run_sweep

MODEL = "assets/quickstart/model"
WIDTHS, RATES = (1, 1.58, 2, 3, 4), (1e-4, 3e-4, 1e-3, 3e-3)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=[0, 1, 4, 16], metavar="N", help="ways: 0 for runs of their own"
    )
    parser.add_argument("--batches", type=int, default=3, help="batches of each way; at least 2")
    parser.add_argument("--rounds", type=int, default=1, help="times that all ways are measured")
    parser.add_argument("--tokens", type=int, default=150_000, help="trained on, each point")
    parser.add_argument("--batch", type=int, default=16, help="sequences of 128 tokens a step")
    parser.add_argument("--dtype", default="float32", help="config model.compute_dtype")
    parser.add_argument("--remat", default="none", help="config model.remat")
    parser.add_argument("--seed", type=int, default=0, help="of the tokens")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write")
    return parser.parse_args(argv)


def points_of(count: int) -> list[dict[str, Any]]:
    """Returns so many points that differ in width, learning rate and, once these are used up, seed."""
    grid = list(product({"optimizer.learning_rate": RATES, "quant.bits": WIDTHS}))
    return [grid[i % len(grid)] | {"seed": i // len(grid)} for i in range(count)]


def measure(at_once: int, batches: int, overrides: Sequence[str], folder: Path) -> list[float]:
    """Trains `batches` batches of `at_once` points (0: as many runs of their own) and returns the seconds of each."""
    size = max(at_once, 1)
    sweep = Sweep("configs/qat_quickstart.py", points_of(batches * size), overrides, points_at_once=at_once)
    ends: list[float] = []

    def say(line: str) -> None:
        if " nats/token" in line:
            ends.append(time.monotonic())

    began = time.monotonic()
    if not run_sweep(sweep, folder, say=say) or len(ends) != len(sweep.points):
        raise SystemExit(f"a point of {folder.name} was stopped or failed: its round is no measurement")
    return np.diff([began, *ends[size - 1 :: size]]).tolist()


def summarize(at_once: int, rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns what the times of a way come to: medians over its rounds, and over later batches."""
    size, batches = max(at_once, 1), len(rounds[0])
    first = statistics.median(times[0] for times in rounds)
    later = statistics.median(seconds for times in rounds for seconds in times[1:])
    return {
        "points_at_once": at_once,
        "points": batches * size,
        "seconds_first_batch": first,
        "seconds_later_batch": later,
        "points_per_hour": 3600 * batches * size / (first + (batches - 1) * later),
        "points_per_hour_later": 3600 * size / later,
        "seconds": rounds,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures every way and writes the record."""
    arguments = parse_arguments(argv)
    if arguments.batches < 2:
        print("sweep_gain: error: the first batch pays for the compiler: measure at least 2", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = folder / "random.npy"
        vocabulary = pretrained.load(MODEL).cfg.vocab_size
        np.save(tokens, np.random.default_rng(arguments.seed).integers(0, vocabulary, 200_000).astype(np.uint16))
        overrides = (
            f"data.train={tokens}",
            f"data.valid={tokens}",
            f"train.tokens={arguments.tokens}",
            f"train.batch_size={arguments.batch}",
            f"model.compute_dtype={arguments.dtype}",
            f"model.remat={arguments.remat}",
            "evaluation.windows=64",
            "checkpoint.every_minutes=inf",
            "log.progress=false",
            "log.recorder_every_steps=0",
        )
        times: dict[int, list[list[float]]] = {at_once: [] for at_once in arguments.at_once}
        for number in range(arguments.rounds):
            for at_once, rounds in times.items():
                rounds.append(measure(at_once, arguments.batches, overrides, folder / f"{at_once}_{number}"))
                shown = ", ".join(f"{seconds:.1f} s" for seconds in rounds[-1])
                print(f"round {number + 1}, {at_once} at once: {shown}", flush=True)
    ways = [summarize(at_once, rounds) for at_once, rounds in times.items()]
    for way in ways:
        print(f"{way['points_at_once']} at once: {way['points_per_hour_later']:,.0f} points an hour")
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.sweep_gain", *(sys.argv[1:] if argv is None else argv)]),
        **machine(arguments.seed),
        "tokens": arguments.tokens,
        "batch": arguments.batch,
        "dtype": arguments.dtype,
        "remat": arguments.remat,
        "ways": ways,
    }
    if arguments.output:
        path = Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
