"""A page about one training run: its curves, its evaluations, and what the flight recorder saw."""

import json
from html import escape
from pathlib import Path
from typing import Any

from lowbit.atomic import write_atomically
from lowbit.errors import DataError
from lowbit.report.curves import draw_curves, read_metrics
from lowbit.report.flight_figures import QUANTITIES, draw_heat_maps, draw_levels, draw_quantity
from lowbit.report.flight_log import FlightLog, read_flight_log
from lowbit.report.html import document, header, provenance, section
from lowbit.report.svg import inline_svg

FACTS = ("device", "device_count", "jax_version", "git_commit", "date")
"""What the page says of how the run was made, as result.json names it."""

SECTIONS = (
    (
        "Codes",
        ("flips", "moved", "stuck_rows", "clipped"),
        "Shares by step and by layer. A code changes where its weight crosses the border between two levels; the maps "
        "show how many did, steps along and layers up. A channel with every code of the start has learned through its "
        "scale alone. Weights outside of the range of the grid get no gradient from most quantizers. Last, the share "
        "of each level, the lowest at the bottom.",
    ),
    (
        "Weights",
        ("change",),
        "How far the float masters have moved from where the run began, relative to their size. ParetoQ (arXiv "
        "2502.02631) reports about 40 % at 2 bits and below, and 10 to 20 % above, after many more tokens than a "
        "short run sees.",
    ),
    (
        "Scales",
        ("drift",),
        "The learned scale over the one of least squared error for the weights as they are now, geometric mean over a "
        "sample of channels. Above 1, training prefers a wider grid than rounding would.",
    ),
    (
        "Adapters",
        ("update", "update_step"),
        "The product of an adapter's factors, relative to the weights that its codes stand for: how large it is, and "
        "how far the recorded step moved it. QLoRA's begins at 0, LoftQ's with what rounding loses.",
    ),
)


def write_run_page(folder: str | Path, output: str | Path | None = None) -> Path:
    """Writes the page of a run folder, finished or not; what was not recorded is left out.

    Args:
      folder: what `lowbit train` wrote.
      output: the page; report.html in the folder if None.

    Returns:
      The path of the page.

    Raises:
      DataError: this is no run folder, nothing has been logged yet, a log cannot be read, or the page not written.
    """
    folder = Path(folder)
    path = folder / "report.html" if output is None else Path(output)
    write_atomically(path, render_run_page(folder).encode(), DataError)
    return path


def render_run_page(folder: Path) -> str:
    """Returns the page as HTML; raises as `write_run_page`."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} is no run folder", "name the folder that `lowbit train` wrote")
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"{folder} has no metrics.jsonl: nothing was trained in it",
            "name a folder that `lowbit train` wrote; what `quantize` did stands in its quantization.json",
        )
    config, result = _read(folder / "config.json"), _read(folder / "result.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    if "loss" not in metrics:
        raise DataError(f"{folder} has logged nothing yet", "wait for the first log point, or look at its config.json")
    name = folder.resolve().name
    curve = inline_svg(draw_curves({name: metrics}), "Training loss over steps", "curves")
    sections = [
        _header(name, config, result, int(metrics["loss"].steps[-1])),
        section("Training", "Faint as logged, strong as a running mean.", _figure(curve)),
        _evaluations(folder / "evaluations.jsonl"),
    ]
    records = folder / "recorder.jsonl"
    # A run that has not come to its first record has an empty file.
    if records.is_file() and records.stat().st_size:
        sections += flight_sections(read_flight_log(records))
    facts: dict[str, Any] = {key: result[key] for key in FACTS if key in result}
    sections.append(provenance(f"python -m lowbit report {folder}", facts | {"seed": config["seed"]}))
    return document(name, sections)


def flight_sections(log: FlightLog) -> list[str]:
    """Returns the sections that show what the flight recorder saw."""
    sections = []
    for title, names, note in SECTIONS:
        # A grid with a zero point has no drift.
        known = [name for name in names if any(name in own for own in log.figures.values())]
        svgs = [inline_svg(draw_quantity(log, name), QUANTITIES[name].words, name) for name in known]
        if title == "Codes":
            if "flips" in known:  # codes under adapters stay
                svgs.insert(1, inline_svg(draw_heat_maps(log), "Codes changed by one step, by layer and step", "heat"))
            svgs.append(inline_svg(draw_levels(log), "Share of each level over steps", "levels"))
        if svgs:
            sections.append(section(title, note, "\n".join(map(_figure, svgs))))
    return sections


def _header(name: str, config: dict[str, Any], result: dict[str, Any], step: int) -> str:
    quant, train = config["quant"], config["train"]
    width = ", ".join(f"{bits:g}" for bits in dict.fromkeys(quant["layer_bits"])) or f"{quant['bits']:g}"
    kind = "in float" if quant["method"] == "float" else f"by {quant['method']} at {width} bits"
    tokens = step * train["batch_size"] * train["sequence_length"]
    facts = [(f"{tokens:,}", "tokens trained on")]
    for text, evaluation in result.get("evaluations", {}).items():
        facts.append((f"{evaluation['nll']:.3f}", f"nats/token on {text}"))
    if result.get("bits_per_weight") is not None:
        facts.append((f"{result['bits_per_weight']:.3f}", "bits/weight of the quantized matrices"))
    if result.get("tokens_per_s") is not None:
        facts.append((f"{result['tokens_per_s']:,.0f}", "tokens/s"))
    lede = (
        f"A model trained {kind}: {step:,} steps of {train['batch_size']} x {train['sequence_length']:,} tokens, "
        f"learning rate {config['optimizer']['learning_rate']:g}" + ("." if result else "; the run is not finished.")
    )
    return header(f"lowbit · {result.get('date', '')[:10]}".rstrip(" ·"), name, lede, facts)


def _evaluations(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{row['step']:,}</td><td>{escape(row['text'])}</td><td class=number>{row['nll']:.4f}</td>"
        f"<td class=number>{row['stderr']:.4f}</td><td class=number>{row['perplexity']:,.1f}</td></tr>"
        for row in rows
    )
    head = "<th>step</th><th>text</th>" + "".join(
        f"<th class=number>{heading}</th>" for heading in ("nats/token", "stderr", "perplexity")
    )
    body = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>'
    return section("Evaluations", "On text that was not trained on; the standard error is over windows.", body)


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an unfinished run has no result.json, hence nothing to say there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}", "it may be cut short: train again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object", "name the folder that `lowbit train` wrote")
    return content
