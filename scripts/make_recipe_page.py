"""Writes the tables and the picture of docs/recipe.md from the runs of the dated records in experiments/.

A comparison is two runs that differ in what it names. `make docs` calls this; a test compares the page with the files.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.table import fill_tables, lay_out

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recipe.md"
PICTURE = ROOT / "docs" / "images" / "recipe.png"

PLAIN, TEACHER, RECIPE, RATES, HIDDEN, ONEBIT, LAST, GPTQ, LONG, TUNED = (
    f"2026-11-22_smollm2_{name}"
    for name in (
        "qat",
        "batch_and_teacher",
        "recipe",
        "starts_and_rates",
        "hidden_states",
        "onebit",
        "4_bits_and_1",
        "gptq_starts",
        "100m_tokens",
        "tuned_teacher",
    )
)  # records, oldest first
TEXTS = {"smollm2_val": "held-out text", "smollm2_wikitext2_valid": "WikiText-2"}

WIDTHS = (1.0, 1.58, 2.0, 3.0, 4.0)
PLAIN_RUNS = {bits: f"{PLAIN}/w{bits:g}" for bits in WIDTHS}
BEST_RUNS = {
    1.0: f"{HIDDEN}/w1_kl1_h.05",
    1.58: f"{HIDDEN}/w158_kl.7_h.05",
    2.0: f"{HIDDEN}/w2_kl.7_h.2",
    3.0: f"{RECIPE}/w3_kl.5",
    4.0: f"{RATES}/w4_flr.2_kl.2_lr5e-4",
}
LONG_RUNS = {bits: f"{LONG}/w{f'{bits:g}'.replace('.', '')}" for bits in WIDTHS}
FLOAT_LONG = f"{LONG}/float"
FLOAT_START, FLOAT_TUNED = f"{PLAIN}/float_start", f"{RECIPE}/float_finetuned_b16"

_MIX = f"{TEACHER}/w2_b16_kl.5"
TASKS = {"arc_easy": "ARC-easy", "piqa": "PIQA", "boolq": "BoolQ"}


class Comparison(NamedTuple):
    """What is changed, at how many bits, and the runs without and with it."""

    change: str
    bits: float
    without: str
    with_it: str


COMPARISONS = (
    Comparison("batch 32 to 16", 1, f"{PLAIN}/w1", f"{TEACHER}/w1_b16"),
    Comparison("batch 32 to 16", 2, f"{PLAIN}/w2", f"{TEACHER}/w2_b16_lr2e-3"),
    Comparison("batch 16 to 8, learning rate 1.4e-3 to 1e-3", 2, f"{TEACHER}/w2_b16", f"{TEACHER}/w2_b8"),
    Comparison("learning rate 2e-3 to 1e-3", 1, f"{PLAIN}/w1", f"{TEACHER}/w1_lr1e-3"),
    Comparison("learning rate 2e-3 to 3e-3", 2, f"{PLAIN}/w2", f"{PLAIN}/w2_lr3e-3"),
    Comparison("teacher, weight 0.5, at batch 32", 2, f"{PLAIN}/w2", f"{TEACHER}/w2_kl.5"),
    Comparison("teacher, weight 0.5", 2, f"{TEACHER}/w2_b16", f"{TEACHER}/w2_b16_kl.5"),
    Comparison("teacher, weight 0.5", 1, f"{TEACHER}/w1_b16", f"{TEACHER}/w1_b16_kl.5"),
    Comparison("teacher weight 0.5 to 0.7", 2, f"{TEACHER}/w2_b16_kl.5", f"{TEACHER}/w2_b16_kl.7"),
    Comparison("teacher weight 0.5 to 0.9", 1, f"{TEACHER}/w1_b16_kl.5", f"{RECIPE}/w1_kl.9"),
    Comparison("teacher weight 0.5 to 0.7, batch 16 to 8", 1, f"{TEACHER}/w1_b16_kl.5", f"{RECIPE}/w1_b8_kl.7"),
    Comparison("teacher weight 0.5 to 0.2, learning rate halved", 4, f"{RECIPE}/w4_kl.5", f"{RECIPE}/w4_kl.2_lr1e-4"),
    Comparison(
        "teacher fine-tuned first (10 M tokens more)",
        2,
        f"{TEACHER}/w2_b16_kl.7",
        f"{RECIPE}/w2_tuned_teacher_kl.7",
    ),
    Comparison("groups of 64: 2.25 bits/weight", 2, f"{TEACHER}/w2_b16_kl.5", f"{RECIPE}/w2_g64"),
    Comparison("Muon for the layers' kernels", 2, f"{TEACHER}/w2_b16_kl.5", f"{RECIPE}/w2_muon"),
    Comparison("batch 16 to 8, teacher weight 0.6, rate 1e-3", 2, _MIX, f"{RATES}/w2_b8_kl.6_lr1e-3"),
    Comparison("batch 16 to 8, teacher weight 0.6", 1.58, f"{RECIPE}/w158_kl.5", f"{RATES}/w158_b8_kl.6"),
    Comparison("hidden states 0.2, teacher 0.6 to 0.7", 2, f"{RATES}/w2_b8_kl.6_lr1e-3", f"{HIDDEN}/w2_kl.7_h.2"),
    Comparison("hidden states 0.05, teacher 0.6 to 0.7", 2, f"{RATES}/w2_b8_kl.6_lr1e-3", f"{HIDDEN}/w2_kl.7_h.05"),
    Comparison("hidden states 0.05, and no cross entropy", 2, f"{RATES}/w2_b8_kl.6_lr1e-3", f"{HIDDEN}/w2_kl1_h.05"),
    Comparison("hidden states 0.05, teacher 0.6 to 0.7", 1.58, f"{RATES}/w158_b8_kl.6", f"{HIDDEN}/w158_kl.7_h.05"),
    Comparison("hidden states 0.05, and no cross entropy", 1, f"{RECIPE}/w1_b8_kl.7", f"{HIDDEN}/w1_kl1_h.05"),
    Comparison("the same, and OneBit's two vectors of values", 1, f"{HIDDEN}/w1_kl1_h.05", f"{ONEBIT}/kl1_h.05"),
    Comparison("hidden states, weight 0.02, batch 8, rate 5e-4", 3, f"{RECIPE}/w3_kl.5", f"{HIDDEN}/w3_kl.5_h.02"),
    Comparison("rate 5e-4, a fifth for floats, teacher 0.2", 4, f"{RECIPE}/w4_kl.5", BEST_RUNS[4.0]),
    Comparison("no teacher, rate 3e-4", 4, f"{RECIPE}/w4_kl.5", f"{RATES}/w4_kl0_lr3e-4"),
    Comparison("a tenth of the rate for embedding and norms", 2, _MIX, f"{RATES}/w2_flr.1"),
    Comparison("a frozen embedding", 2, _MIX, f"{RATES}/w2_embed_frozen"),
    Comparison("a tenth of the rate for scales", 2, _MIX, f"{RATES}/w2_slr.1"),
    Comparison("estimator identity", 2, _MIX, f"{RATES}/w2_identity"),
    Comparison("estimator dsq", 2, _MIX, f"{RATES}/w2_dsq"),
    Comparison("confidence-weighted divergence", 2, _MIX, f"{RATES}/w2_conf"),
    Comparison("2 M tokens at 4 bits, then 8 M at 2", 2, _MIX, f"{RATES}/w2_progressive"),
    Comparison("rotated residual stream", 2, _MIX, f"{RATES}/w2_rotate"),
    Comparison("masters from GPTQ", 2, _MIX, f"{RATES}/w2_gptq"),
    Comparison("masters and scales from GPTQ", 2, _MIX, f"{GPTQ}/w2_gptq"),
    Comparison("masters and scales from GPTQ", 3, f"{RECIPE}/w3_kl.5", f"{GPTQ}/w3_gptq"),
    Comparison("hidden states 0.05", 1, f"{RECIPE}/w1_b8_kl.7", f"{LAST}/w1_kl.7_h.05"),
    Comparison("teacher 0.2 to 0.1", 4, BEST_RUNS[4.0], f"{LAST}/w4_kl.1"),
    Comparison("teacher 0.2 to 0.1, batch 16 to 8", 4, BEST_RUNS[4.0], f"{LAST}/w4_kl.1_b8"),
    Comparison("teacher 0.1, rates 4e-4 and 1.6e-4, b2 0.98", 4, BEST_RUNS[4.0], f"{LAST}/w4_kl.1_lr4e-4_flr.4_b2.98"),
    Comparison("teacher tuned first on these tokens, 0.8", 4, BEST_RUNS[4.0], f"{TUNED}/w4_tuned_kl.8_flr.3"),
    Comparison("teacher tuned first on these tokens, 0.5", 4, BEST_RUNS[4.0], f"{TUNED}/w4_tuned_kl.5_flr.3"),
    Comparison("5 M tokens in float, then 5 M at 4 bits", 4, f"{RATES}/w4_kl0_lr3e-4", f"{TUNED}/w4_after_float_5m"),
)


def nats(run: str) -> list[float]:
    """Returns a run's final nats/token on each of `TEXTS`; `run` is RECORD/NAME in experiments/."""
    lines = (ROOT / "experiments" / run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    final = {row["text"]: row["nll"] for row in rows if row["step"] == rows[-1]["step"]}
    return [final[text] for text in TEXTS]


def _cell(run: str) -> str:
    return " / ".join(f"{value:.3f}" for value in nats(run))


def _gap(run: str, reference: str) -> str:
    return " / ".join(f"{a - b:+.3f}" for a, b in zip(nats(run), nats(reference), strict=True))


def widths_table() -> str:
    """Returns each width's nats with the plain and the best recipe, and the distance to the fine-tuned float model."""
    lines = []
    for bits in WIDTHS:
        best, long = BEST_RUNS[bits], LONG_RUNS[bits]
        runs = [_cell(PLAIN_RUNS[bits]), _cell(best), _gap(best, FLOAT_TUNED), _cell(long), _gap(long, FLOAT_LONG)]
        lines.append([f"{bits:g}", *runs])
    lines.append(["float, fine-tuned", "", _cell(FLOAT_TUNED), "", _cell(FLOAT_LONG), ""])
    lines.append(["float, as it starts", "", _cell(FLOAT_START), "", "", ""])
    heads = ["bits", "plain recipe", "best recipe", "to fine-tuned float", "100 M tokens", "to fine-tuned float"]
    return lay_out(heads, [False, *[True] * 5], lines, "markdown")


def tasks_table() -> str:
    """Returns the accuracies of the long runs on the zero-shot tasks, in per cent with their standard errors."""
    lines = []
    for label, run in {**{f"{bits:g}": run for bits, run in LONG_RUNS.items()}, "float": FLOAT_LONG}.items():
        found = json.loads((ROOT / "experiments" / run / "tasks.json").read_text(encoding="utf-8"))["tasks"]
        scores = [found[task]["metrics"]["acc"] for task in TASKS]
        lines.append([label, *(f"{100 * score['value']:.1f} ±{100 * score['stderr']:.1f}" for score in scores)])
    return lay_out(["bits", *TASKS.values()], [False, *[True] * len(TASKS)], lines, "markdown")


def comparisons_table() -> str:
    """Returns what each change is worth: a minus is a gain."""
    lines = []
    for change, bits, without, with_it in COMPARISONS:
        deltas = [f"{a - b:+.3f}" for a, b in zip(nats(with_it), nats(without), strict=True)]
        lines.append([change, f"{bits:g}", *deltas, _cell(with_it)])
    heads = ["change", "bits", *TEXTS.values(), "result"]
    return lay_out(heads, [False, True, True, True, True], lines, "markdown")


def draw() -> Figure:
    """Draws nats/token against bits for both recipes and budgets, a panel a text, with the float models as lines."""
    with theme.style():
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for index, (panel, title) in enumerate(zip(panels, TEXTS.values(), strict=True)):
            for runs, colour, name in (
                (PLAIN_RUNS, theme.VERMILLION, "plain, 10 M tokens"),
                (BEST_RUNS, theme.BLUE, "best, 10 M"),
                (LONG_RUNS, theme.GREEN, "best, 100 M"),
            ):
                values = [nats(runs[bits])[index] for bits in WIDTHS]
                panel.plot(WIDTHS, values, color=colour.light, marker="o", zorder=3, label=name)
            for run, label, below in ((FLOAT_START, "float, as it starts", False), (FLOAT_TUNED, "fine-tuned", True)):
                value = nats(run)[index]
                panel.axhline(value, color=theme.SLATE.light, linewidth=1, linestyle=":" if below else "--")
                panel.annotate(
                    label,
                    (WIDTHS[0], value),
                    (0, -4 if below else 4),
                    textcoords="offset points",
                    va="top" if below else "bottom",
                    color=theme.SLATE.light,
                    fontsize=9,
                )
            panel.set_title(title)
            panel.set_xticks(WIDTHS, [f"{bits:g}" for bits in WIDTHS])
            panel.set_xlabel("bits per weight of the layers' matrices")
            panel.margins(y=0.1)
        panels[1].legend(frameon=False)
        panels[0].set_ylabel("nats per token (lower is better)")
    return figure


def filled_page() -> str:
    """Returns docs/recipe.md with its tables brought up to date."""
    tables = {"widths": widths_table(), "tasks": tasks_table(), "comparisons": comparisons_table()}
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables)


def main() -> None:
    """Rewrites the page if it is out of date, and draws the picture."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
    figure = draw()
    with theme.style():
        figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
