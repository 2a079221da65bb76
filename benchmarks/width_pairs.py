"""Two widths of the compiled CPU kernels in alternating turns: how many times as long one takes as the other.

`benchmarks.cpu_kernels` times all widths and another engine, one after another: a difference of a few percent between
two of them is where their copies lie in memory, and when their turn came. Here the two take turns, each one first as
often, and the median is that of the ratios of neighbours; once with the copies of either made first.

Command: python -m benchmarks.width_pairs -o docs/results/width_pairs_cpu.json
Hardware: any CPU; two minutes on two cores.
Expected: docs/kernels.md, which `make docs` writes from the JSON.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.bench.products import Product, Stream
from lowbit.kernels import library

SHAPES = ((4096, 4096), (4096, 14336))
"""(k, n)."""
PAIRS = ((1.58, 2.0), (1.0, 2.0), (2.0, 4.0))


def take_turns(k: int, n: int, pair: tuple[float, float], threads: int, isa: str, turns: int) -> list[dict[str, Any]]:
    """Returns a row for each order in which the copies were made.

    Args:
      k: inputs.
      n: outputs.
      pair: bits of the codes.
      threads: that share a product.
      isa: the kernels.
      turns: timings of each.
    """
    rows = []
    for made in (pair, pair[::-1]):
        streams = {bits: Stream(Product(k, n, bits, 1, threads), isa) for bits in made}
        times: dict[float, list[float]] = {bits: [] for bits in pair}
        for turn in range(turns + 1):
            for bits in pair if turn % 2 else pair[::-1]:
                seconds = streams[bits].seconds()
                if turn:  # the first one warms up
                    times[bits].append(seconds)
        first, second = pair
        ratios = [a / b for a, b in zip(times[first], times[second], strict=True)]
        medians = {f"{bits:g}": statistics.median(own) for bits, own in times.items()}
        row = {"k": k, "n": n, "bits": list(pair), "made_first": made[0], "threads": threads, "turns": turns}
        rows.append(row | {"seconds": medians, "ratio": statistics.median(ratios)})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="auto", choices=library.KERNELS)
    parser.add_argument("--threads", type=int, default=library.default_threads())
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="of products")
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    options = parser.parse_args(argv)
    shapes = SHAPES
    if options.shapes:
        shapes = tuple((int(k), int(n)) for n, _, k in (shape.partition("x") for shape in options.shapes))
    isa = library.choose(options.kernels)
    rows = []
    for k, n in shapes:
        for pair in PAIRS:
            rows += take_turns(k, n, pair, options.threads, isa, options.turns)
            print(f"{n} x {k}: {rows[-1]['bits']}: {rows[-2]['ratio']:.3f}, {rows[-1]['ratio']:.3f}", file=sys.stderr)
    command = shlex.join(["python", "-m", "benchmarks.width_pairs", *(sys.argv[1:] if argv is None else argv)])
    record = {"benchmark": "width_pairs", "command": command, **machine(0), "kernels": isa, "rows": rows}
    write_record(record, options.output)


if __name__ == "__main__":
    main()
