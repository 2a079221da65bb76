"""The record of `bench gpu` as pictures: time against bits, and against tokens at a time."""

from typing import Any

import matplotlib.ticker as mticker
from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.gpu_tables import copy_rate, products, reading, weights
from lowbit.report.kernel_figures import draw_over_tokens, panels


def draw(record: dict[str, Any]) -> dict[str, Figure]:
    """Returns the figures of a record of `lowbit.bench.gpu.measure_gpu`, by name."""
    return {"bits": over_bits(record), "batch": over_batch(record)}


def over_bits(record: dict[str, Any]) -> Figure:
    """One token: microseconds over bits per weight, a panel a shape, with what copying as many bytes would take.

    A second line is what a kernel took that reads them and does no more: it starts and ends as each product does.
    """
    shapes = record["plan"]["shapes"]
    figure, drawn = panels(len(shapes))
    for axes, (k, n) in zip(drawn, shapes, strict=True):
        rows = [row for row in products(record) if (row["k"], row["n"], row["batch"]) == (k, n, 1)]
        plain = [row for row in rows if row["engine"] in ("lowbit", "xla") and not row["group"]]
        plain = [row for row in plain if row["activations"] == "bfloat16"]
        bits = [row["bits"] for row in plain]
        copying = [1e6 * row["bytes"] / copy_rate(record) for row in plain]
        axes.plot(bits, copying, color=theme.MUTED.light, linestyle=":", label="copying as many bytes")
        alone = [1e6 * (reading(record, row) or 0) for row in plain]
        axes.plot(bits, alone, color=theme.MUTED.light, linestyle="--", label="a kernel that only reads them")
        axes.plot(bits, [1e6 * r["seconds"] for r in plain], color=theme.BLUE.light, marker="o", label="product")
        axes.set_title(f"{n} x {k}, one token")
        axes.set_xlabel("bits per weight")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(mticker.FixedLocator(bits))
        axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=0)
    drawn[0].set_ylabel("microseconds")
    drawn[0].legend(frameon=False)
    return figure


def over_batch(record: dict[str, Any]) -> Figure:
    """Microseconds over tokens at a time: every width, XLA's bfloat16, and each type of another engine."""
    shapes = record["plan"]["shapes"]
    figure, drawn = panels(len(shapes))
    for axes, (k, n) in zip(drawn, shapes, strict=True):
        lines: dict[str, dict[int, float]] = {}
        for row in products(record):
            if (row["k"], row["n"]) != (k, n) or row.get("group") or row.get("activations") == "int8":
                continue
            name = weights(row) if row["engine"] in ("lowbit", "xla") else f"{row['engine']}, {row['kind']}"
            lines.setdefault(name, {})[row["batch"]] = 1e6 * row["seconds"]
        draw_over_tokens(axes, f"{n} x {k}", lines)
        axes.yaxis.set_major_locator(mticker.LogLocator(subs=(1, 2, 5)))
    drawn[0].set_ylabel("microseconds")
    handles, names = drawn[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure
