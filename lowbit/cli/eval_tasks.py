"""The tasks of `eval`: what one model knows, or two."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lowbit.cli.tables import table
from lowbit.cli.usage import UsageError
from lowbit.data import TextTokenizer
from lowbit.evals import PairedTest, paired_test
from lowbit.evals.encoding import first_token
from lowbit.evals.predictor import Predictor
from lowbit.evals.scoring import BatchScorer
from lowbit.evals.tasks import Item, TaskResult, evaluate_task, read_items, task
from lowbit.evals.tasks.task import PERPLEXITY


class Comparison(NamedTuple):
    """A model on a task; beside another model, the test of each metric (this model's samples minus the other's)."""

    result: TaskResult
    tests: Mapping[str, PairedTest] | None = None


def open_tasks(arguments: argparse.Namespace) -> dict[str, list[Item]]:
    """Returns the items of each task that --tasks names.

    Raises:
      UsageError: --tasks without a name or a file, or one task twice.
      ConfigError: an unknown task.
      DataError: as `read_items`.
    """
    found: dict[str, list[Item]] = {}
    for spec in arguments.tasks:
        name, equals, path = spec.partition("=")
        if not equals or not path:
            raise UsageError(f"--tasks {spec} names no file", "write NAME=FILE, such as piqa=piqa.jsonl")
        if name in found:
            raise UsageError(f"--tasks names {name} twice", "give one file of it")
        found[name] = read_items(path, task(name).read, arguments.items)
    return found


def evaluate_tasks(
    items: Mapping[str, Sequence[Item]], model: Predictor, other: Predictor | None, batch: int
) -> dict[str, Comparison]:
    """Returns one result a task; with another model, also how the first one differs from it.

    Raises:
      UsageError: a model without a tokenizer.
    """
    found = _results(items, model, batch)
    if other is None:
        return {name: Comparison(result) for name, result in found.items()}
    theirs = _results(items, other, batch)
    return {
        name: Comparison(
            result,
            {metric: paired_test(values, theirs[name].samples[metric]) for metric, values in result.samples.items()},
        )
        for name, result in found.items()
    }


def task_table(results: Mapping[str, Comparison]) -> str:
    """Returns one row a metric of a task."""
    rows = []
    headings = ["task", "metric", "value", "stderr", "items"]
    for name, (result, tests) in results.items():
        for metric, (value, stderr) in ((m, dataclasses.astuple(figure)) for m, figure in result.metrics.items()):
            error = "" if stderr is None else f"±{stderr:.4f}"
            row = [name, metric, f"{value:.4f}", error, f"{len(result.samples[metric]):,}"]
            if tests is not None:
                test = tests[metric]
                unit = " nats" if metric == PERPLEXITY else ""
                row += [
                    f"{test.difference:+.4f}{unit}",
                    f"{test.low:+.4f} to {test.high:+.4f}",
                    f"{test.wins}:{test.losses}",
                    f"{test.p_value:.4f}",
                ]
            rows.append(row)
    if any(tests is not None for _, tests in results.values()):
        headings += ["difference", "95 %", "more:fewer", "p"]
    return table(headings, rows, left=2)


def task_record(comparison: Comparison) -> dict[str, Any]:
    """Returns a result as JSON has it."""
    result, tests = comparison
    record: dict[str, Any] = {
        "items": len(result.log_likelihoods),
        "metrics": {name: dataclasses.asdict(metric) for name, metric in result.metrics.items()},
    }
    if tests is not None:
        record["against"] = {name: dataclasses.asdict(test) for name, test in tests.items()}
    return record


def _results(items: Mapping[str, Sequence[Item]], model: Predictor, batch: int) -> dict[str, TaskResult]:
    if "tokenizer.json" not in model.tokenizer_files:
        raise UsageError("tasks are text, and the model has no tokenizer", "save the model with its tokenizer")
    tokenizer = TextTokenizer.load(model.tokenizer_files, vocab_size=model.cfg.vocab_size)
    scorer, prefix = BatchScorer(model, batch), first_token(model.cfg, tokenizer)
    return {name: evaluate_task(scorer, tokenizer, prefix, task(name), each) for name, each in items.items()}
