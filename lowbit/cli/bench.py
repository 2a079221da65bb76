"""`bench`: what the kernels of this machine are worth."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lowbit.cli.threads import set_threads
from lowbit.cli.usage import UsageError

QUICK: dict[str, Any] = {
    "shapes": ((4096, 4096),),
    "batches": (1, 32),
    "models": ("smollm2-135m",),
}


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints tables, and writes record and pictures where asked."""
    output = None if arguments.output is None else Path(arguments.output).expanduser()
    if output is not None:
        if output.suffix != ".json":
            raise UsageError(f"{output} is no name for a JSON file", "end it in .json")
        if output.exists() and not arguments.overwrite:
            raise UsageError(f"{output} exists", "give another name, or --overwrite")
    set_threads(arguments.threads or _processors())
    # Only now: numpy reads the number of threads when it is imported.
    from lowbit.bench.cpu import Plan, measure
    from lowbit.report.kernel_tables import tables

    threads = tuple(sorted({1, arguments.threads or _processors()}))
    plan = Plan(arguments.kernels, threads, repeats=arguments.repeats, **(QUICK if arguments.quick else {}))
    record = measure(plan, progress=lambda line: print(line, file=sys.stderr))
    record["command"] = shlex.join(["python", "-m", "lowbit", *sys.argv[1:]])
    print("\n\n".join(tables(record, "plain").values()))
    if output is not None:
        _write(record, output)
    return 0


def _processors() -> int:
    """As `library.default_threads`, which cannot be asked before numpy knows its threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(record: dict[str, Any], output: Path) -> None:
    from lowbit.report.kernel_figures import draw, save

    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for name, figure in draw(record).items():
        save(figure, output.with_name(f"{output.stem}_{name}.png"))
