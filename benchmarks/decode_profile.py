"""What a GPU starts to draw one token: kernels by the time that they take a step, and the time between them.

For each width a model of random weights draws tokens greedily after a context of zeros, in one program. First it is
timed as it is, then once more under the profiler. Kernels that are started one by one are told apart by the instruction
of the compiled program that they are. In a CUDA graph (--graphs, as they are started where nobody looks) a trace has
their own names alone, and products of different matrices are one line.

What is busy is the sum of the kernels; the rest of a step is between them. `calls` are those of a step: of a kernel of
a layer as many as the model has layers, or twice that.

Command: python -m benchmarks.decode_profile --bits 2 16 -o docs/results/decode_profile_135m_h100.json
Hardware: one GPU. On a CPU the shape tiny runs in seconds; --kernels gpu takes the GPU's layout there.
Time: some 15 seconds a width, most of it compilation.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.drawing import BFLOAT16_BITS, Drawing, make_generator
from benchmarks.machine import machine
from benchmarks.op_times import (
    CONTAINERS,
    ONE_BY_ONE,
    UNKNOWN,
    DeviceEvent,
    Instruction,
    device_events,
    instructions,
    plain,
    plain_names,
)
from benchmarks.record import write_record
from lowbit.bench.random_model import LEVELS, SHAPES
from lowbit.errors import DataError
from lowbit.generation import CACHE_KINDS, Generator
from lowbit.generation.step_attention import METHODS

OUTER_SCOPES = (
    "jit(generate)",
    "jit(advance)",
    "jit(prefill)",
    "CachedLayers",
    "eval_jaxpr",
    "while",
    "body",
    "closed_call",
)
"""Parts of an operation's path that say no more than that it belongs to a step."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    widths = [*LEVELS, BFLOAT16_BITS]
    parser.add_argument("--bits", nargs="+", type=float, choices=widths, default=[2, BFLOAT16_BITS], metavar="BITS")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--context", type=int, default=64, help="tokens before those that are drawn")
    parser.add_argument("--tokens", type=int, default=64, help="that are drawn; the first of them needs no step")
    parser.add_argument("--cache", choices=CACHE_KINDS, default="bfloat16")
    parser.add_argument("--attention", choices=("auto", *METHODS), default="auto")
    parser.add_argument("--activations", choices=("float32", "int8"), default="float32", help="int8 rounds them")
    parser.add_argument("--kernels", choices=("auto", "gpu", "xla"), default="auto", help="of packed matrices")
    parser.add_argument("--loop", action="store_true", help="over the layers, which are written out on a GPU otherwise")
    parser.add_argument("--apart", action="store_true", help="a kernel for each product, where a step is one otherwise")
    parser.add_argument("--graphs", action="store_true", help="profiles CUDA graphs, as they are run otherwise")
    parser.add_argument("--repeats", type=int, default=5, help="timings without the profiler")
    parser.add_argument("--rows", type=int, default=40, help="kernels of each width that are printed")
    parser.add_argument("--trace", metavar="DIR", help="keeps the traces there")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    options = parser.parse_args(argv)
    if options.tokens < 2:
        parser.error("--tokens has to be 2 or more: the first of them needs no step")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for bits in options.bits:
            folder = Path(options.trace or scratch) / f"{bits:g}_bits"
            cases.append({"bits": bits} | profiled(_model(options, bits), options, folder))
            print(described(cases[-1], options.rows), file=sys.stderr, flush=True)
    names = (
        "shape",
        "batch",
        "context",
        "tokens",
        "cache",
        "attention",
        "activations",
        "kernels",
        "loop",
        "apart",
        "graphs",
    )
    return {
        "benchmark": "decode_profile",
        "command": "python -m benchmarks.decode_profile " + shlex.join(options.argv),
        **machine(0),
        **{name: getattr(options, name) for name in names},
        "cases": cases,
    }


def _model(options: argparse.Namespace, bits: float) -> Generator:
    settings = {name: getattr(options, name) for name in ("cache", "activations", "kernels", "attention")}
    return make_generator(options.shape, bits, **settings)


def profiled(model: Generator, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times and profiles the drawing of tokens.

    Raises:
      DataError: a trace without a kernel of the program.
    """
    weights, steps = model.weights, options.tokens - 1
    decoder = model.decoder._replace(whole=not options.apart)
    decoder = decoder._replace(unrolled=False, whole=False) if options.loop else decoder

    drawing = Drawing(decoder, weights, options.batch, options.context, options.tokens)
    drawing.step_seconds()
    seconds = [drawing.step_seconds() for _ in range(options.repeats)]
    inputs = jax.block_until_ready(drawing.arguments())
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(drawing.program(*inputs))
    known = plain_names(instructions(drawing.program.as_text() or ""))
    record = summarized(device_events(folder, known), known, steps, decoder.cfg.num_layers)
    return {"weight_bytes": weights.nbytes, "step_us": 1e6 * statistics.median(seconds), **record}


def summarized(
    events: Sequence[DeviceEvent], known: Mapping[str, Instruction], steps: int, layers: int
) -> dict[str, Any]:
    """Returns what a step takes, microseconds, and its kernels, those that take longest first.

    Args:
      events: of one run of the program.
      known: its instructions by their `plain` names.
      steps: that were run.
      layers: of the model: what is called as often or more in a step belongs to a layer.

    Raises:
      DataError: no kernel.
    """
    named = [(event, known.get(plain(event.name), UNKNOWN)) for event in events]
    kernels = [(event, instruction) for event, instruction in named if instruction.opcode not in CONTAINERS]
    if not kernels:
        raise DataError("the trace has no kernel of the program", "profile it on a device that jax can trace")
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event, instruction in kernels:
        seconds[event.kernel, event.name, _operation(instruction.path)].append(event.seconds)
    busy = sum(event.seconds for event, _ in kernels)
    begin, end = (min(e.begin for e, _ in kernels), max(e.begin + e.seconds for e, _ in kernels))
    rows: list[dict[str, Any]] = [
        {
            "kernel": kernel,
            "instruction": name,
            "operation": operation,
            "calls": len(times) / steps,
            "us_each": 1e6 * statistics.median(times),
            "us": 1e6 * sum(times) / steps,
            "share": sum(times) / busy,
        }
        for (kernel, name, operation), times in seconds.items()
    ]
    rows.sort(key=lambda row: -row["us"])
    of_layers = sum(row["calls"] for row in rows if row["calls"] > 0.9 * layers)  # a trace may have lost some
    return {
        "traced_step_us": 1e6 * (end - begin) / steps,
        "busy_us": 1e6 * busy / steps,
        "kernels_a_step": len(kernels) / steps,
        "kernels_a_layer": of_layers / layers,
        "kernels": rows,
    }


def described(case: Mapping[str, Any], rows: int) -> str:
    """Returns the profile of a width as lines to read."""
    lines = [
        f"{case['bits']:g} bits: {case['step_us']:.0f} us a step, {case['traced_step_us']:.0f} under the profiler, "
        f"busy for {case['busy_us']:.0f} "
        f"with {case['kernels_a_step']:.0f} kernels, {case['kernels_a_layer']:.1f} a layer",
        f"  {'us/step':>8} {'share':>6} {'calls':>6} {'us each':>8}  kernel",
    ]
    for row in case["kernels"][:rows]:
        name = row["kernel"] if row["kernel"] == row["instruction"] else f"{row['kernel']} [{row['instruction']}]"
        figures = f"{row['us']:8.1f} {row['share']:6.1%} {row['calls']:6.1f} {row['us_each']:8.2f}"
        lines.append(f"  {figures}  {name:.60}  {row['operation']}")
    return "\n".join(lines)


def _operation(path: str) -> str:
    """Where in the source an instruction comes from, without what all of a step share."""
    return "/".join(scope for scope in path.split("/") if scope not in OUTER_SCOPES)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the kernels of each width, and writes the JSON."""
    options = parse_arguments(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    if not options.graphs:
        # Read when the first device is asked for.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_BY_ONE}".strip()
    record = measure(options)
    write_record(record, options.output)


if __name__ == "__main__":
    main()
