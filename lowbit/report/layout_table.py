"""The record of `benchmarks.float_layouts` as a table."""

import itertools
from typing import Any

from lowbit.report.kernel_tables import Form
from lowbit.report.table import lay_out


def float_layouts(record: dict[str, Any], form: Form) -> str:
    """Returns microseconds a step by where float weights lie: a line a layout."""
    shapes, batches = (list(dict.fromkeys(row[key] for row in record["rows"])) for key in ("shape", "batch"))
    columns = list(itertools.product(shapes, batches))
    found: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for row in record["rows"]:
        stacked = "a stack" if row["stacked"] else "arrays of their own"
        line = (stacked, f"{row['first']} first", "joined" if row["joined"] else "apart")
        found.setdefault(line, {})[row["shape"], row["batch"]] = f"{row['us']:,.0f}"
    headings = ["layers", "first", "matrices", *(f"{shape}, {batch}" for shape, batch in columns)]
    lines = [[*line, *(times.get(column, "–") for column in columns)] for line, times in found.items()]
    return lay_out(headings, [False] * 3 + [True] * len(columns), lines, form)
