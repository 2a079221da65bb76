"""`bench`: what the kernels of this machine are worth."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowbit.cli.threads import set_threads
from lowbit.cli.usage import UsageError

QUICK: dict[str, Any] = {
    "shapes": ((4096, 4096),),
    "batches": (1, 32),
    "models": ("smollm2-135m",),
}
QUICK_GPU: dict[str, Any] = {
    "shapes": ((8192, 8192),),
    "batches": (1, 32),
    "models": (),
}


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints tables, and writes record and pictures where asked."""
    output = None if arguments.output is None else Path(arguments.output).expanduser()
    if output is not None:
        if output.suffix != ".json":
            raise UsageError(f"{output} is no name for a JSON file", "end it in .json")
        if output.exists() and not arguments.overwrite:
            raise UsageError(f"{output} exists", "give another name, or --overwrite")
    record, tables, draw = _on_gpu(arguments) if arguments.device == "gpu" else _on_cpu(arguments)
    record["command"] = shlex.join(["python", "-m", "lowbit", *sys.argv[1:]])
    print("\n\n".join(tables(record, "plain").values()))
    if output is not None:
        _write(record, draw(record), output)
    return 0


def _on_cpu(arguments: argparse.Namespace) -> tuple[dict[str, Any], Callable[..., Any], Callable[..., Any]]:
    """The record, and what shows it as tables and pictures."""
    set_threads(arguments.threads or _processors())
    # Only now: numpy reads the number of threads when it is imported.
    from lowbit.bench.cpu import Plan, measure
    from lowbit.report.kernel_figures import draw
    from lowbit.report.kernel_tables import tables

    threads = tuple(sorted({1, arguments.threads or _processors()}))
    kernels = arguments.kernels or "auto"
    plan = Plan(kernels, threads, repeats=arguments.repeats, **(QUICK if arguments.quick else {}))
    return measure(plan, progress=_progress), tables, draw


def _on_gpu(arguments: argparse.Namespace) -> tuple[dict[str, Any], Callable[..., Any], Callable[..., Any]]:
    """The same of a GPU."""
    for name in ("kernels", "threads"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is for bench cpu", f"leave out --{name}")
    from lowbit.bench.gpu import GpuPlan, measure_gpu
    from lowbit.report.gpu_figures import draw
    from lowbit.report.gpu_tables import tables

    plan = GpuPlan(repeats=arguments.repeats, **(QUICK_GPU if arguments.quick else {}))
    return measure_gpu(plan, progress=_progress), tables, draw


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _processors() -> int:
    """As `library.default_threads`, which cannot be asked before numpy knows its threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(record: dict[str, Any], figures: dict[str, Any], output: Path) -> None:
    from lowbit.report.kernel_figures import save

    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        save(figure, output.with_name(f"{output.stem}_{name}.png"))
