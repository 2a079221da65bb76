"""Fills the tables of docs/evaluation.md from what `scripts/compare_with_harness.py` measured."""

import json
import sys
from pathlib import Path
from typing import Any

from lowbit.evals.tasks import TASKS
from lowbit.report.table import fill_tables, lay_out

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "evaluation.md"
RESULTS = ROOT / "docs" / "results" / "harness_agreement.json"
NOTHING = "Nothing has been measured yet."


def tables() -> dict[str, str]:
    """Returns every table that the page may ask for, by name."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["comparisons"] if RESULTS.exists() else []
    return {
        "evaluation.tasks": task_metrics(),
        "evaluation.harness": against_harness(found),
        "evaluation.transformers": against_transformers(found),
    }


def task_metrics() -> str:
    """The tasks and what each is measured in."""
    cells = [[name, ", ".join(task.metrics)] for name, task in TASKS.items()]
    return lay_out(["task", "metrics"], [False, False], cells, "markdown")


def against_harness(found: list[dict[str, Any]]) -> str:
    """Our own scoring against the harness on the same model."""
    return _table(found, "tasks", "harness", "tasks_against_harness")


def against_transformers(found: list[dict[str, Any]]) -> str:
    """The harness on our model against the harness on that of transformers."""
    with_it = [record for record in found if "transformers" in record]
    return _table(with_it, "harness", "transformers", "harness_against_transformers")


def _table(found: list[dict[str, Any]], one: str, other: str, gap: str) -> str:
    if not found:
        return NOTHING
    names = {"tasks": "lowbit", "harness": "harness", "transformers": "transformers"}
    headings = ["model", "as", "task", "items", f"acc, {names[one]}", f"acc, {names[other]}"]
    headings += ["other choice", "largest gap, nats", "relative"]
    cells = [
        [
            record["source"],
            f"{record['model']}, {record['backend']}",
            record["task"],
            str(record["items"]),
            f"{record[one]['metrics']['acc']:.4f}",
            f"{record[other]['metrics']['acc']:.4f}",
            str(record[gap]["other_choice"]),
            f"{record[gap]['largest_log_likelihood_gap']:.1e}",
            f"{record[gap]['largest_relative_gap']:.1e}",
        ]
        for record in found
    ]
    return lay_out(headings, [False] * 3 + [True] * 6, cells, "markdown")


def filled_page() -> str:
    """Returns docs/evaluation.md with its tables as the results have them now."""
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables())


def main() -> None:
    """Rewrites the page where it is out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print("wrote docs/evaluation.md", file=sys.stderr)


if __name__ == "__main__":
    main()
