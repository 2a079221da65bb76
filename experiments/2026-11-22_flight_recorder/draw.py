"""Draws the pictures of this record, and prints its table of relative weight changes.

Command: python experiments/2026-11-22_flight_recorder/draw.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lowbit.report import theme
from lowbit.report.flight_figures import draw_heat_maps, draw_levels, draw_quantity
from lowbit.report.flight_log import FlightLog, read_flight_log

HERE = Path(__file__).parent
RUNS = {
    "1 bit, 5e-4": "w1_lr5e-4",
    "2 bit, 5e-4": "w2",
    "4 bit, 5e-4": "w4_lr5e-4",
    "2 bit, 1.5e-4": "w2_lr1.5e-4",
    "4 bit, 1.5e-4": "w4",
}
FIGURES = ("change", "moved", "flips", "stuck_rows", "clipped", "drift")


def mean(log: FlightLog, figure: str) -> np.ndarray:
    """The mean over kinds and layers by record `[r]`."""
    return np.mean([values.mean(axis=1) for values in log.of(figure).values()], axis=0)


def draw_change(logs: dict[str, FlightLog]) -> Figure:
    """Relative weight change of all runs over steps: colour is width, a broken line the lower learning rate."""
    colours = {"1": theme.CRIMSON, "2": theme.VERMILLION, "4": theme.BLUE}
    with theme.style():
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, quantity, title in (
            (left, "change", "|W - W0| / |W0|, L1"),
            (right, "moved", "codes other than at the start"),
        ):
            for name, log in logs.items():
                style = "--" if "1.5e-4" in name else "-"
                axes.plot(log.steps, mean(log, quantity), style, color=colours[name[0]].light, label=name)
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.set_ylim(0)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1, 0.62))
    return figure


def main() -> None:
    """Writes the PNGs beside this file and prints a row a run."""
    logs = {name: read_flight_log(HERE / folder / "recorder.jsonl") for name, folder in RUNS.items()}
    draw_change(logs).savefig(HERE / "change.png", dpi=110)
    two = logs["2 bit, 5e-4"]
    draw_quantity(two, "flips").savefig(HERE / "w2_flips.png", dpi=110)
    draw_heat_maps(two).savefig(HERE / "w2_flips_by_layer.png", dpi=110)
    draw_levels(two).savefig(HERE / "w2_levels.png", dpi=110)
    draw_quantity(two, "drift").savefig(HERE / "w2_drift.png", dpi=110)
    print("| run | " + " | ".join(FIGURES) + " |")
    for name, log in logs.items():
        cells = []
        for figure in FIGURES:
            values = mean(log, figure)
            value = float(values.mean() if figure == "flips" else values[-1])
            cells.append(f"{value:.3f}" if figure == "drift" else f"{value:.2%}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
