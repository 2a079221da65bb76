"""Draws how far the weights of this record's runs went, and prints a row a run.

Command: python experiments/2026-11-22_smollm2_100m_tokens/draw.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lowbit.report import theme
from lowbit.report.flight_log import FlightLog, read_flight_log

HERE = Path(__file__).parent
RUNS = {
    "1 bit": ("w1", theme.CRIMSON),
    "1.58 bits": ("w158", theme.AMBER),
    "2 bits": ("w2", theme.VERMILLION),
    "3 bits": ("w3", theme.TEAL),
    "4 bits": ("w4", theme.BLUE),
}
FIGURES = ("change", "moved", "flips", "stuck_rows", "clipped", "drift")


def mean(log: FlightLog, figure: str) -> np.ndarray:
    """The mean over kinds and layers by record `[r]`."""
    return np.mean([values.mean(axis=1) for values in log.of(figure).values()], axis=0)


def draw_change(logs: dict[str, FlightLog]) -> Figure:
    """Relative weight change over steps, and at the end by kind of matrix, of every width."""
    with theme.style():
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for number, (name, log) in enumerate(logs.items()):
            colour = RUNS[name][1].light
            left.plot(log.steps, mean(log, "change"), color=colour)
            by_kind = {kind: values[-1].mean() for kind, values in log.of("change").items()}
            places = np.arange(len(by_kind)) + (number - 2) * 0.16
            right.bar(places, list(by_kind.values()), width=0.15, color=colour, label=name)
        left.set_title("|W - W0| / |W0|, L1, mean over all matrices")
        left.set_xlabel("step of 32 x 1,024 tokens")
        right.set_title("the same after the last step, by matrix")
        right.set_xticks(np.arange(len(by_kind)), [kind.removesuffix("_proj") for kind in by_kind])
        right.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
        left.set_ylim(0, 0.34)
        left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def main() -> None:
    """Writes the PNG beside this file and prints the table."""
    logs = {name: read_flight_log(HERE / folder / "recorder.jsonl") for name, (folder, _) in RUNS.items()}
    draw_change(logs).savefig(HERE / "change.png", dpi=110)
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
