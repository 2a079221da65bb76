"""The record of `benchmarks.mixed_precision` as tables: what allocated widths are worth, and how near measures are."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lowbit.report.kernel_tables import Form
from lowbit.report.table import format_seconds, lay_out

MEASURED = "kl"
"""The measure that approximates nothing, with which the others are compared."""


def tables(record: dict[str, Any], form: Form) -> dict[str, str]:
    """Returns the tables of a record, by name."""
    ways = list(dict.fromkeys(row["way"] for row in record["rows"] if row["way"] != "float"))
    return {
        "mixed.machine": machine(record, form),
        "mixed.choices": choices(record, form),
        "mixed.measures": measures(record, form),
        **{f"mixed.{way.lower()}": losses(record, way, form) for way in ways},
    }


def machine(record: dict[str, Any], form: Form) -> str:
    """Where the numbers are from."""
    settings, found = record["settings"], record["machine"]
    command = f"`{record['command']}`" if form == "markdown" else record["command"]
    text = settings["eval"]
    float_nats = next(row["nats"] for row in record["rows"] if row["way"] == "float")
    lines = [
        ["model", settings["model"]],
        ["grid", f"paretoq, one scale a {settings['granularity']}"],
        ["evaluated on", f"{text['windows']} windows of {text['length']} tokens of {', '.join(text['texts'])}"],
        ["float model", f"{float_nats:.4f} nats/token"],
        ["device", found["device"]],
        ["commit", (found["git_commit"] or "unknown")[:7]],
        ["date", found["date"][:10]],
        ["command", command],
    ]
    return lay_out(["", ""], [False, False], lines, form)


def choices(record: dict[str, Any], form: Form) -> str:
    """What each choice of widths takes, and what the measures say that it loses: a line a budget and choice."""
    names = _measures(record)
    headings = ["bits", "widths", "bits/weight", "bytes", *(f"loss by {name}" for name in names)]
    lines = [
        [
            *(f"{choice['budget']:g}", choice["name"], f"{choice['bits_per_weight']:.3f}", f"{choice['bytes']:,}"),
            *(f"{choice['predicted'][name]:.4f}" for name in names),
        ]
        for choice in record["choices"]
    ]
    return lay_out(headings, [True, False, *[True] * (2 + len(names))], lines, form)


def measures(record: dict[str, Any], form: Form) -> str:
    """How long each measure takes, and how near its losses are to those that are measured."""
    headings = ["measure", "sequences", "seconds", f"correlation of logarithms with {MEASURED}", f"ratio to {MEASURED}"]
    reference = _logarithms(record["measures"][MEASURED])
    lines = []
    for name in _measures(record):
        found = record["measures"][name]
        own = _logarithms(found)
        in_nats = name.startswith(("gradient", MEASURED))
        lines.append(
            [
                *(name, f"{found['sequences']:,}", format_seconds(found["seconds"])),
                f"{np.corrcoef(own, reference)[0, 1]:.3f}",
                f"{np.exp(np.mean(own - reference)):.2f}" if in_nats else "",
            ]
        )
    return lay_out(headings, [False, *[True] * 4], lines, form)


def losses(record: dict[str, Any], way: str, form: Form) -> str:
    """Nats of each choice after one way, and its change against the best plain choice of the same bytes.

    The standard error is that of the change over windows; where several seeds were trained, over windows of their mean.
    """
    headings = ["bits", "widths", "seeds", "nats/token", "change", "standard error"]
    lines = []
    for budget in dict.fromkeys(choice["budget"] for choice in record["choices"]):
        names = [choice["name"] for choice in record["choices"] if choice["budget"] == budget]
        nats = {name: _window_nats(record, budget, name, way) for name in names}
        nats = {name: rows for name, rows in nats.items() if len(rows)}
        plain = [name for name in nats if not name.startswith("by ")]
        best = min(plain, key=lambda name: float(nats[name].mean()))
        for name, rows in nats.items():
            change = rows.mean(axis=0) - nats[best].mean(axis=0)
            error = change.std(ddof=1) / len(change) ** 0.5
            told = ["", ""] if name == best else [f"{change.mean():+.4f}", f"{error:.4f}"]
            lines.append([f"{budget:g}", name, str(len(rows)), f"{rows.mean():.4f}", *told])
    return lay_out(headings, [True, False, *[True] * 4], lines, form)


def _measures(record: dict[str, Any]) -> list[str]:
    """Their names, in the order in which they were asked for."""
    return list(record["choices"][0]["predicted"])


def _window_nats(record: dict[str, Any], budget: float, name: str, way: str) -> np.ndarray:
    """f64[seeds windows]."""
    of = (budget, name, way)
    rows = [r["window_nats"] for r in record["rows"] if (r["budget"], r["choice"], r["way"]) == of]
    return np.asarray(rows, np.float64)


def _logarithms(measure: dict[str, Any]) -> np.ndarray:
    values: Iterable[float] = (x for layer in measure["losses"] for row in layer.values() for x in row)
    return np.log(np.fromiter(values, np.float64))
