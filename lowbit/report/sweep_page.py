"""The report of a sweep: its table, its figures, and one page with both, all made of sweep.json."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from lowbit.atomic import write_atomically
from lowbit.report import theme
from lowbit.report.html import document, header, provenance, section
from lowbit.report.svg import inline_svg
from lowbit.report.sweep import WIDTH, SweepResults, best_by_width, label, read_sweep, show, sweep_cells, sweep_table
from lowbit.report.sweep_figures import draw_sweep
from lowbit.report.table import format_seconds

_NOTES = {
    "response": "Each dot is one run, each line the mean over seeds; the large dot is the best of its line.",
    "map": "Mean nats/token over seeds. Shade: what is lost against the best of the row, which is outlined.",
    "best": "The best setting of each width, at the size in which its matrices are stored; faint, all others.",
    "distances": "Nats/token above the float model that was trained on the same tokens; in brackets, nats/token.",
}
_TITLES = {"response": "Response", "map": "Map", "best": "Best of each width", "distances": "Distance to float"}


def write_sweep_report(folder: str | Path) -> Path:
    """Writes table.md, a PNG a figure and report.html beside the sweep.json of a folder.

    Returns:
      The path of report.html.

    Raises:
      DataError: sweep.json is missing, not as `SweepResults` says, or has no finished point.
    """
    folder = Path(folder)
    results = read_sweep(folder / "sweep.json")
    table = sweep_table(results, "markdown")
    figures = draw_sweep(results)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    with theme.style():
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", format="png")
    path = folder / "report.html"
    write_atomically(path, render_sweep(results, figures).encode())
    return path


def render_sweep(results: SweepResults, figures: Mapping[str, Figure]) -> str:
    """Renders the page.

    Args:
      results: the sweep.
      figures: of `draw_sweep`.

    Raises:
      DataError: no point is finished.
    """
    sections = [_header(results)]
    for name, figure in figures.items():
        svg = inline_svg(figure, _NOTES[name], name)
        sections.append(section(_TITLES[name], _NOTES[name], f"<figure>{svg}</figure>"))
    sections += [_table(results), _failures(results), _provenance(results)]
    return document(_title(results), sections)


def _title(results: SweepResults) -> str:
    names = [label(key) for key in results.axes] or ["one setting"]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"A sweep over {listed}"


def _header(results: SweepResults) -> str:
    spent = sum(point.seconds for point in results.points if point.seconds is not None)
    trained = sum(point.error is None for point in results.points)
    facts = [(f"{len(results.points)} of {results.count}", "points finished")]
    if spent:
        facts.append((f"{3600 * trained / spent:,.0f}", f"points an hour; {format_seconds(spent)} in all"))
    for width, setting in sorted(best_by_width(results).items(), key=lambda item: -(item[0] or 0)):
        mean = setting.mean(results.texts[0])
        chosen = ", ".join(f"{label(key)} {show(value)}" for key, value in setting.values.items() if key != WIDTH)
        where = "the best" if width is None else f"at {width:g} bit"
        facts.append((f"{mean:.3f}", f"nats/token {where}" + (f": {chosen}" if chosen else "")))
    eyebrow = f"lowbit · {results.date[:10]} · commit {(results.git_commit or 'unknown')[:10]}"
    return header(eyebrow, _title(results), f"Base: {' '.join([results.base, *results.overrides])}", facts)


def _table(results: SweepResults) -> str:
    headings, lines = sweep_cells(results)
    head = "".join(f'<th class="number">{escape(heading)}</th>' for heading in headings)
    body = "\n".join(
        "<tr>" + "".join(f'<td class="number">{escape(cell)}</td>' for cell in line) + "</tr>" for line in lines
    )
    note = (
        "The mean over seeds with their standard deviation. The time is the point's share where several are trained "
        "side by side."
    )
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return section("Results", note, f'<div class="scroll">{table}</div>')


def _failures(results: SweepResults) -> str:
    failed = [point for point in results.points if point.error is not None]
    if not failed:
        return ""
    items = "".join(f"<dt>{escape(point.name)}</dt><dd>{escape(point.error or '')}</dd>" for point in failed)
    return section("Failed", "Points whose numbers broke; the others went on.", f'<dl class="machine">{items}</dl>')


def _provenance(results: SweepResults) -> str:
    facts = {
        "device": f"{results.device} × {results.device_count}",
        "jax": results.jax_version,
        "python": results.python_version,
        "seed": results.seed,
        "commit": results.git_commit,
        "date": results.date,
    }
    return provenance(results.command, facts)
