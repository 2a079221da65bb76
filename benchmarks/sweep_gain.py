"""What it gains that points of a sweep share a compiled program, and are trained side by side: points an hour.

The same points are trained as runs of their own, one after another through one program, and so many at once under
vmap; each way as `lowbit sweep` does it, with preparation, compilation, evaluation and files. The first batch of a way
pays for the compiler; what later ones take is their median. Data are random tokens, so that losses mean nothing.

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
from lowbit.models import pretrained
from lowbit.report.sweep import read_sweep
from lowbit.sweep import Sweep, product, run_sweep
from lowbit.train.run_folder import write_atomically

MODEL = "assets/quickstart/model"
WIDTHS, RATES = (1, 1.58, 2, 3, 4), (1e-4, 3e-4, 1e-3, 3e-3)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=[0, 1, 4, 16], metavar="N", help="ways: 0 for runs of their own"
    )
    parser.add_argument("--batches", type=int, default=3, help="batches of each way; at least 2")
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


def measure(at_once: int, batches: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Trains `batches` batches of `at_once` points (0: as many runs of their own) and returns their times."""
    size = max(at_once, 1)
    sweep = Sweep("configs/qat_quickstart.py", points_of(batches * size), overrides, points_at_once=at_once)
    ends: list[float] = []

    def say(line: str) -> None:
        if " nats/token" in line:
            ends.append(time.monotonic())

    began = time.monotonic()
    run_sweep(sweep, folder, say=say)
    seconds = np.diff([began, *ends[size - 1 :: size]])
    found = read_sweep(folder / "sweep.json")
    later = statistics.median(seconds[1:].tolist())
    return {
        "points_at_once": at_once,
        "points": batches * size,
        "seconds": float(seconds.sum()),
        "seconds_first_batch": float(seconds[0]),
        "seconds_later_batch": later,
        "points_per_hour": 3600 * batches * size / float(seconds.sum()),
        "points_per_hour_later": 3600 * size / later,
        "nll_first_point": found.points[0].evaluations["random"]["nll"] if found.points[0].evaluations else None,
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
        ways = []
        for at_once in arguments.at_once:
            ways.append(measure(at_once, arguments.batches, overrides, folder / str(at_once)))
            print(f"{at_once} at once: {ways[-1]['points_per_hour']:,.0f} points an hour", flush=True)
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
