"""How fast the train step runs: tokens/s, model TFLOP/s, share of the matmul peak, memory, for float and each width.

Random weights are made on the device and random tokens are the data; the step is the one that `lowbit.train` runs.
Timings of the variants are interleaved, so that a device that slows down slows all of them down. A variant that runs
out of memory is recorded and the others go on.

Command: python -m benchmarks.train_throughput --shape smollm2-135m -o docs/results/train_throughput_135m_h100.json
Hardware: any; tested shapes are made for one H100 with 80 GB.
Expected: docs/speed.md.

Variants: float, 1, 1.58, 2, 3, 4, with "+distill" for a float teacher beside it, and after a colon settings of the
config for this one alone: --variants float 2 2:model.remat=full,train.loss_chunks=16 2+distill
"""

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.machine import machine, matmul_peak, peak_memory
from benchmarks.op_times import ONE_BY_ONE, op_seconds
from benchmarks.record import write_record
from benchmarks.shapes import SHAPES
from benchmarks.train_cases import Bench, Case, case_config, make_bench, run_steps, time_steps
from lowbit.llama.flops import kernel_weights

VARIANTS = ("float", "1", "1.58", "2", "3", "4", "2+distill")
ONE_DEVICE = (1, 1, 1)
COUNTING = (
    "model FLOPs a token = 6 N + 6 L q (T+1) + 6 d V: N weights of the blocks' kernels, causal attention (seen keys "
    "only), head; with a teacher, its forward pass besides. Quantizers and recomputation are not counted."
)
PROFILED_STEPS = 3


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the model")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="NAME[:KEY=VALUE,...]", help="see above")
    parser.add_argument("--batch", type=int, default=32, help="sequences on each device along data and fsdp")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--remat", default="dots", help="config model.remat")
    parser.add_argument("--attention", default="auto", help="config model.attention")
    parser.add_argument("--dtype", default="bfloat16", help="config model.compute_dtype")
    parser.add_argument("--loss-chunks", type=int, default=8, help="config train.loss_chunks")
    parser.add_argument("--accumulate", type=int, default=1, help="config train.accumulate")
    parser.add_argument("--mesh", nargs="+", default=["1,1,1"], metavar="D,F,T", help="data,fsdp,tensor; several")
    parser.add_argument("--steps", type=int, default=5, help="steps of one timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each variant")
    parser.add_argument("--matmul", type=int, default=8192, help="size of the square product that is the peak")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument(
        "--profile",
        metavar="FOLDER",
        help="trace three steps of each variant, and sum up by kind; a GPU then runs without CUDA graphs, 4 %% slower",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    meshes = [_mesh(text) for text in options.mesh]
    if any(mesh != ONE_DEVICE for mesh in meshes) and ONE_DEVICE not in meshes:
        meshes.insert(0, ONE_DEVICE)  # what the others are compared with
    cfg = SHAPES[options.shape]
    settings = [
        f"model.remat={options.remat}",
        f"model.attention={options.attention}",
        f"model.compute_dtype={options.dtype}",
        f"train.loss_chunks={options.loss_chunks}",
        f"train.accumulate={options.accumulate}",
    ]
    cases = [Case(name, mesh) for mesh in meshes for name in options.variants]
    # Every name is read before any work: a typo costs nothing.
    prepared = [(case, case_config(case, settings, options.batch, options.length)) for case in cases]
    peak = matmul_peak(options.matmul, options.repeats)
    _say(f"matmul peak {peak / 1e12:.1f} TFLOP/s a device")

    benches: list[Bench] = []
    records: dict[Case, dict[str, Any]] = {}
    for case, config in prepared:
        try:
            benches.append(make_bench(case, config, cfg, options.seed))
            records[case] = benches[-1].record
            _say(f"{case.name} on {case.mesh}: compiled in {records[case]['compile_seconds']:.1f} s")
        except jax.errors.JaxRuntimeError as error:
            records[case] = _failure(case, error)
    # The device's high-water mark only rises: from the smallest program to the largest, each sets its own.
    benches.sort(key=lambda bench: bench.record["memory"]["compiled"]["total"])
    for repeat in range(options.repeats):
        for bench in list(benches):
            try:
                _measure_once(bench, options, first=repeat == 0)
            except jax.errors.JaxRuntimeError as error:
                benches.remove(bench)
                records[bench.case] |= _failure(bench.case, error)
    if options.profile:
        for bench in benches:
            bench.record["profile"] = _profile(bench, options)
    for bench in benches:
        _summarize(bench, peak)
    _compare(benches)
    return {
        "benchmark": "train_throughput",
        "command": "python -m benchmarks.train_throughput " + shlex.join(options.argv),
        **machine(options.seed),
        "shape": options.shape,
        "kernel_weights": kernel_weights(cfg),
        "counting": COUNTING,
        "matmul_size": options.matmul,
        "matmul_peak_flops": peak,
        "steps": options.steps,
        "repeats": options.repeats,
        "cases": [records[case] for case in cases],
    }


def _measure_once(bench: Bench, options: argparse.Namespace, first: bool) -> None:
    before = peak_memory()
    metrics = time_steps(bench, options.seed, options.steps)
    if first:
        after = peak_memory()
        bench.record["memory"]["peak"] = after
        # Otherwise an earlier variant had used as much: `peak` is then an upper bound.
        bench.record["memory"]["peak_is_own"] = None if after is None or before is None else after > before
        bench.record["loss"] = float(metrics["loss"])


def _summarize(bench: Bench, peak: float) -> None:
    seconds = statistics.median(bench.step_seconds)
    speed = bench.tokens / seconds
    flops = speed * bench.record["model_flops_per_token"] / bench.case.devices
    bench.record |= {
        "step_seconds": bench.step_seconds,
        "tokens_per_s": speed,
        "model_tflops_per_device": flops / 1e12,
        "share_of_peak": flops / peak,
    }


def _compare(benches: list[Bench]) -> None:
    """Adds speed relative to the float variant on the same mesh, and to the same variant on one device."""
    speeds = {bench.case: bench.record["tokens_per_s"] for bench in benches}
    for bench in benches:
        plain, alone = Case("float", bench.case.mesh), Case(bench.case.name, ONE_DEVICE)
        bench.record["speed_over_float"] = _ratio(speeds, bench.case, plain)
        bench.record["speed_over_one_device"] = _ratio(speeds, bench.case, alone)


def _ratio(speeds: dict[Case, float], case: Case, other: Case) -> float | None:
    return speeds[case] / speeds[other] if other in speeds else None


def _profile(bench: Bench, options: argparse.Namespace) -> dict[str, float]:
    folder = Path(options.profile) / f"{bench.case.name}_{'x'.join(map(str, bench.case.mesh))}".replace(":", "_")
    state, _ = run_steps(bench, bench.start(jax.random.key(options.seed)), 1)
    with jax.profiler.trace(str(folder)):
        run_steps(bench, state, PROFILED_STEPS)
    seconds = op_seconds(folder, bench.step.as_text())
    return {kind: total / PROFILED_STEPS for kind, total in seconds.items()}


def _failure(case: Case, error: Exception) -> dict[str, Any]:
    """What is recorded of a variant that did not fit; any other error of the device is a bug and passes."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        raise error
    _say(f"{case.name} on {case.mesh}: out of memory")
    return {"variant": case.name, "mesh": list(case.mesh), "error": f"out of memory: {text.splitlines()[0]:.300}"}


def _mesh(text: str) -> tuple[int, int, int]:
    data, fsdp, tensor = map(int, text.split(","))
    return data, fsdp, tensor


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['variant']}: {record['error']}"
    memory = record["memory"]
    peak = "" if memory["peak"] is None else f", peak {memory['peak'] / 2**30:.2f} GiB"
    return (
        f"{record['variant']:<12} {record['mesh']}: {record['tokens_per_s']:>12,.0f} tokens/s, "
        f"{record['model_tflops_per_device']:.1f} TFLOP/s a device, {record['share_of_peak']:.1%} of peak, "
        f"compiled {memory['compiled']['total'] / 2**30:.2f} GiB{peak}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a line a variant, and writes the JSON."""
    options = parse_arguments(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    if options.profile:
        # Read when the first device is asked for.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_BY_ONE}".strip()
    record = measure(options)
    for case in record["cases"]:
        _say(_line(case))
    write_record(record, options.output)


if __name__ == "__main__":
    main()
