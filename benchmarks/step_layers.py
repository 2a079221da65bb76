"""What a layer of a step of one sequence takes on a GPU: all layers in one kernel, and each product in its own.

Models of random weights with few and with more layers draw tokens greedily, in turns; a layer takes what more layers
take longer. Packed matrices are multiplied by one kernel a step ("whole") and by kernels of single products ("apart");
16 bits are bfloat16, by XLA. The limit is what copying of memory, timed in the same run, reads and writes a second.

Command: python -m benchmarks.step_layers -o docs/results/step_layers_h100.json
Hardware: one H100. On a CPU `--shapes tiny --layers 1 2 --kernels gpu` runs in a minute.
Time: four minutes, half of it compilation.
Expected: docs/gpu_kernels.md, which `make docs` writes from the JSON.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.drawing import BFLOAT16_BITS, Drawing, make_generator
from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.bench.gpu_products import Copy
from lowbit.bench.random_model import LEVELS, SHAPES

DEPTHS = {"smollm2-135m": (6, 30), "llama-1b": (4, 16), "llama-8b": (8, 32), "llama-70b": (1, 5)}
"""Layers of the smaller and the larger model."""
DEFAULT_DEPTHS = (1, 2)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(DEPTHS))
    widths = [*LEVELS, BFLOAT16_BITS]
    parser.add_argument("--bits", nargs="+", type=float, choices=widths, default=[2, 4, BFLOAT16_BITS], metavar="BITS")
    parser.add_argument("--contexts", nargs="+", type=int, default=[64], help="tokens before those that are drawn")
    parser.add_argument("--tokens", type=int, default=64, help="that are drawn; the first of them needs no step")
    parser.add_argument("--kernels", choices=("auto", "gpu", "xla"), default="auto", help="of packed matrices")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    copy = Copy()
    copy.seconds()
    seconds = statistics.median(copy.seconds() for _ in range(options.repeats))
    rows = []
    for shape in options.shapes:
        rows += measured_shape(shape, options)
    return {
        "benchmark": "step_layers",
        "command": "python -m benchmarks.step_layers " + shlex.join(options.argv),
        **machine(0),
        "tokens": options.tokens,
        "repeats": options.repeats,
        "copy_bytes_per_s": copy.nbytes / seconds,
        "layers": rows,
    }


def measured_shape(shape: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each width, context and way to compute it."""
    depths = DEPTHS.get(shape, DEFAULT_DEPTHS)
    tasks: dict[tuple[float, int, str, int], Callable[[], float]] = {}
    sizes: dict[tuple[float, int], int] = {}
    for bits in options.bits:
        for depth in depths:
            model = make_generator(shape, bits, depth, kernels=options.kernels)
            sizes[bits, depth] = model.weights.nbytes
            for context in options.contexts:
                for way in ("whole", "apart") if bits != BFLOAT16_BITS else ("xla",):
                    decoder = model.decoder._replace(whole=way == "whole")
                    drawing = Drawing(decoder, model.weights, 1, context, options.tokens)
                    drawing.step_seconds()
                    tasks[bits, context, way, depth] = drawing.step_seconds
    times: dict[Any, list[float]] = {key: [] for key in tasks}
    for _ in range(options.repeats):
        for key, task in tasks.items():
            times[key].append(task())
    rows = []
    for bits, context, way, depth in tasks:
        if depth != depths[0]:
            continue
        few, more = (statistics.median(times[bits, context, way, d]) for d in depths)
        between = depths[1] - depths[0]
        row = {
            "shape": shape,
            "bits": bits,
            "context": context,
            "way": way,
            "layers": depths,
            "layer_bytes": (sizes[bits, depths[1]] - sizes[bits, depths[0]]) / between,
            "layer_us": 1e6 * (more - few) / between,
            "step_us": 1e6 * more,
        }
        print(f"{shape} {bits:g} bits {way}, context {context}: {row['layer_us']:.1f} us a layer", file=sys.stderr)
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    options = parse_arguments(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    write_record(measure(options), options.output)


if __name__ == "__main__":
    main()
