"""Zero-shot accuracies of a float model and of what was made of it, with paired tests against the float one.

Command: python -m benchmarks.eval_tasks_smollm2 --data FOLDER -o tasks.json model.gguf runs/w2 w2.lowbit
FOLDER holds TASK.jsonl or TASK.jsonl.bz2; every task found there is scored. The first source is the float model.
Hardware: one GPU; `--items` for less. Needs no network.
Expected: docs/evaluation.md.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from lowbit.atomic import write_atomically
from lowbit.cli import predictors
from lowbit.cli.eval_tasks import evaluate_tasks, task_record
from lowbit.errors import DataError
from lowbit.evals import paired_test
from lowbit.evals.tasks import TASKS, Item, TaskResult, read_items


def find_items(folder: Path, first: int | None) -> dict[str, list[Item]]:
    """Returns the items of every task that has a file in a folder.

    Raises:
      DataError: none has, or a file is damaged.
    """
    found = {}
    for name, task in TASKS.items():
        for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.bz2"):
            if path.is_file():
                found[name] = read_items(path, task.read, first)
                break
    if not found:
        raise DataError(f"{folder} holds no task", f"put files there such as {next(iter(TASKS))}.jsonl")
    return found


def score(source: str, items: Mapping[str, Sequence[Item]], batch: int) -> tuple[dict[str, Any], dict[str, TaskResult]]:
    """Returns (the record of one model, its results by task)."""
    model = predictors.from_source(source)
    start = time.monotonic()
    found = evaluate_tasks(items, model, None, batch)
    record = {
        "source": source,
        "backend": model.backend,
        "seconds": time.monotonic() - start,
        "tasks": {name: task_record(comparison) for name, comparison in found.items()},
    }
    return record, {name: comparison.result for name, comparison in found.items()}


def compare(result: TaskResult, reference: TaskResult) -> dict[str, Any]:
    """Returns the paired test of each metric, model minus reference."""
    return {
        metric: dataclasses.asdict(paired_test(samples, reference.samples[metric]))
        for metric, samples in result.samples.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Scores each source, and writes JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="run folder, packed file or float model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, help="the first so many of each task (default: all)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    items = find_items(arguments.data, arguments.items)
    record = machine(0) | {"command": shlex.join(sys.argv), "items": {name: len(each) for name, each in items.items()}}
    record["models"] = []
    reference: dict[str, TaskResult] = {}
    for source in arguments.sources:
        model, results = score(source, items, arguments.batch)
        if reference:
            model["against"] = {name: compare(result, reference[name]) for name, result in results.items()}
        reference = reference or results
        record["models"].append(model)
        write_atomically(arguments.output, (json.dumps(record, indent=2) + "\n").encode())
        figures = {name: round(each["metrics"]["acc"]["value"], 4) for name, each in model["tasks"].items()}
        print(f"{source}: {figures}, {model['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
