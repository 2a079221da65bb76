"""The report: one HTML file that opens without a network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lowbit.atomic import write_atomically
from lowbit.errors import DataError
from lowbit.report import theme
from lowbit.report.curves import Series, draw_curves, read_metrics
from lowbit.report.frontier import draw_frontier, write_frontier
from lowbit.report.histograms import WeightHistogram, draw_histograms
from lowbit.report.html import document, header, provenance, section
from lowbit.report.results import Row, Run, read_rows, read_run, trained_and_rounded
from lowbit.report.svg import inline_svg
from lowbit.report.table import COLUMNS, format_bytes


def write_report(folder: str | Path, histograms: Sequence[WeightHistogram] = ()) -> Path:
    """Writes pareto.png and report.html into a run folder, from the results.json and run.json there.

    Args:
      folder: the run folder; paths of metrics in the rows are relative to it.
      histograms: weights before and after training, where they are at hand.

    Returns:
      The path of report.html.

    Raises:
      DataError: an input is missing or not as `Row`, `Run` and `read_metrics` say.
    """
    folder = Path(folder)
    rows, run = read_rows(folder / "results.json"), read_run(folder / "run.json")
    logged = [row for row in rows if row.metrics is not None]
    alone = len(theme.methods(logged)) == 1
    curves = {
        f"{row.bits:g} bit" if alone else row.name: read_metrics(folder / row.metrics)
        for row in logged
        if row.metrics is not None
    }
    page = render_page(rows, run, curves, histograms)
    write_frontier(rows, folder / "pareto.png")
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def render_page(
    rows: list[Row],
    run: Run,
    curves: Mapping[str, Mapping[str, Series]],
    histograms: Sequence[WeightHistogram] = (),
) -> str:
    """Renders the page; sections without content are left out.

    Args:
      rows: results, in the order of the table.
      run: where they come from.
      curves: for each run's name its metrics; "loss" is drawn.
      histograms: weights before and after training.

    Raises:
      DataError: there are no rows.
    """
    if not rows:
        raise DataError("no results to report", "evaluate at least one model")
    sections = [_header(rows, run), _frontier(rows), _table(rows)]
    if curves:
        svg = inline_svg(draw_curves(curves), "Training loss over steps, one curve a width", "curves")
        note = "Loss of each quantized model on its training batches: faint as logged, strong as a running mean."
        sections.append(section("Training", note, f"<figure>{svg}</figure>"))
    if histograms:
        svg = inline_svg(draw_histograms(histograms), "Histograms of weights over their levels", "weights")
        note = (
            "Outlined: the pretrained weights, in units of the scale that training starts from. Filled: the "
            "float masters after training, in units of the learned scale. Ticks are the levels they round to."
        )
        sections.append(section("Weights", note, f"<figure>{svg}</figure>"))
    sections += [_samples(rows), _provenance(run)]
    return document(_title(rows), sections)


def _title(rows: list[Row]) -> str:
    widths = sorted({row.bits for row in rows if row.method != "float"}, reverse=True)
    if not widths:
        return "A language model in float"
    words = [f"{width:g}" for width in widths]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"One language model at {listed} bit{'' if words == ['1'] else 's'} per weight"


def _header(rows: list[Row], run: Run) -> str:
    floats = [row for row in rows if row.method == "float"]
    trained, rounded = trained_and_rounded(rows, 2)
    facts: list[tuple[str, str]] = []
    if floats:
        facts.append((f"{floats[0].nll:.2f}", f"nats/token of the float model, {format_bytes(floats[0].bytes)}"))
    if trained:
        facts.append((f"{trained.nll:.2f}", f"nats/token trained at 2 bits, {format_bytes(trained.bytes)}"))
    if trained and rounded:
        gap = rounded.nll - trained.nll
        facts.append((f"{gap:+.2f}".replace("-", "−"), "nats/token lost by rounding to 2 bits instead, at its best"))
    if trained and floats:
        facts.append((f"{floats[0].bytes / trained.bytes:.1f} ×", "smaller file at 2 bits than in float"))
    checked = [row.verified for row in rows if row.verified is not None]
    if checked:
        facts.append((f"{sum(checked)} of {len(checked)}", "packed files proved equal to the model they came from"))
    lede = (
        "A pretrained model is rounded to each width, and fine-tuned at each width with the rounding in its forward "
        "pass. All are scored on the same text, which none of them was trained on."
    )
    return header(f"lowbit · {run.date[:10]} · commit {run.commit[:10]}", _title(rows), lede, facts)


def _frontier(rows: list[Row]) -> str:
    svg = inline_svg(draw_frontier(rows), "Nats per token against bits per weight and against bytes", "frontier")
    note = "How well each model predicts held-out text, against what it takes to store it."
    return section("Frontier", note, f"<figure>{svg}</figure>")


def _table(rows: list[Row]) -> str:
    reference = next((row.nll for row in rows if row.method == "float"), min(row.nll for row in rows))
    worst = max(row.nll - reference for row in rows)
    marks = theme.method_marks(theme.methods(rows))

    def kind(numeric: bool) -> str:
        return ' class="number"' if numeric else ""

    head = "".join(
        f"<th{kind(c.numeric)}>{escape(c.heading)}</th>{'<th></th>' if c.heading == 'nats/token' else ''}"
        for c in COLUMNS
    )
    lines = []
    for number, row in enumerate(rows):
        colour = f"background: var(--{marks[row.method][0].role})"
        cells = []
        for column in COLUMNS:
            text = escape(column.cell(row))
            if column.heading == "method":
                cells.append(f'<td class="method"><span class="swatch" style="{colour}"></span>{text}</td>')
            elif column.heading == "nats/token":
                share = (row.nll - reference) / worst if worst > 0 else 0.0
                bar = f'<span class="bar"><i style="width: {100 * max(share, 0):.1f}%; {colour}"></i></span>'
                cells.append(f'<td class="number">{text}</td><td>{bar}</td>')
            elif column.heading == "verified" and row.verified is False:
                cells.append(f'<td class="wrong">{text}</td>')
            else:
                cells.append(f"<td{kind(column.numeric)}>{text}</td>")
        starts = number > 0 and rows[number - 1].method != row.method
        lines.append(f"{'<tr class=first>' if starts else '<tr>'}{''.join(cells)}</tr>")
    note = (
        "Bars show nats/token above the float model. Bits/weight counts the quantized matrices with their "
        "scales; whole model counts every parameter. Verified: the packed file decodes to the trained weights, "
        "bit for bit."
    )
    body = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n'
    return section("Results", note, body + "</tbody></table></div>")


def _samples(rows: list[Row]) -> str:
    written = [row for row in rows if row.sample is not None]
    if not written:
        return ""
    marks = theme.method_marks(theme.methods(rows))
    blocks = []
    for width in sorted({row.bits for row in written}, reverse=True):
        texts = "".join(
            f'<blockquote><footer style="color: var(--{marks[row.method][0].role})">'
            f"{escape(theme.method_label(row.method))}</footer><p>{escape(row.sample or '')}</p></blockquote>"
            for row in written
            if row.bits == width
        )
        blocks.append(f'<div class="width"><h3>{width:g} bit</h3><div class="texts">{texts}</div></div>')
    note = "One prompt, continued by each model."
    return section("What the models write", note, f'<div class="samples">{"".join(blocks)}</div>')


def _provenance(run: Run) -> str:
    return provenance(run.command, {**run.machine, "seed": run.seed, "commit": run.commit, "date": run.date})
