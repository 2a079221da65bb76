"""The flight recorder's log, its figures, and the page of a run."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from test_page import Balance

from lowbit.cli import main
from lowbit.errors import DataError
from lowbit.report.flight_figures import QUANTITIES, draw_heat_maps, draw_levels, draw_quantity
from lowbit.report.flight_log import read_flight_log
from lowbit.report.run_page import write_run_page
from lowbit.report.svg import inline_svg

GATE, EMBED = "layers/mlp/gate_proj/kernel", "embed/embedding"


def record(step, layers=3):
    """Invented figures: two parameters, one with a zero point, one whose layers have 2 and 4 levels."""
    shares = [[0.5, 0.5], [0.1, 0.4, 0.4, 0.1], [0.2, 0.3, 0.3, 0.2]][:layers]
    names = [name for name in QUANTITIES if name != "drift"]
    gate = {name: [0.01 * step * (layer + 1) for layer in range(layers)] for name in names}
    embed = {name: [0.02 / step] for name in names}
    parameters = {
        GATE: gate | {"drift": [1.0 + 0.01 * step] * layers, "levels": shares},
        EMBED: embed | {"levels": [[0.25] * 4]},
    }
    return {"step": step, "parameters": parameters}


@pytest.fixture
def write(tmp_path):
    path = tmp_path / "recorder.jsonl"

    def write_rows(*rows, end=""):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
        return path

    return write_rows


@pytest.fixture
def run_page_folder(tmp_path, write):
    """A run folder with everything but weights."""
    config = {
        "seed": 3,
        "quant": {"method": "paretoq", "bits": 2.0, "layer_bits": [1, 2, 2]},
        "train": {"batch_size": 4, "sequence_length": 32},
        "optimizer": {"learning_rate": 1e-3},
    }
    evaluation = {"step": 9, "text": "<valid>", "nll": 3.25, "stderr": 0.01, "perplexity": 25.79}
    result = {
        "evaluations": {"<valid>": evaluation},
        "tokens_per_s": 1234.5,
        "bits_per_weight": 1.7,
        "date": "2026-11-22",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "loss": {5 - s / 9}}}\n' for s in range(1, 10)))
    write(record(3), record(6), record(9))
    return tmp_path


def test_a_log_is_read_as_arrays_and_a_cut_last_line_is_left_out(write):
    rows = [record(1), record(5)]
    rows[1]["parameters"][GATE]["change"][0] = None
    log = read_flight_log(write(*rows, end='{"step": 6, "par'))
    np.testing.assert_array_equal(log.steps, [1, 5])
    assert log.of("flips")["gate_proj"].shape == (2, 3)
    np.testing.assert_allclose(log.of("flips")["gate_proj"][1], [0.05, 0.10, 0.15])
    assert np.isnan(log.of("change")["gate_proj"][1, 0])
    assert list(log.of("drift")) == ["gate_proj"]
    assert [shares.shape for shares in log.levels[GATE]] == [(2, 2), (2, 4), (2, 4)]


@pytest.mark.parametrize(
    "line", ["{", "3", '{"step": 4}', '{"step": "4", "parameters": {}}', '{"step": 4, "parameters": 1}']
)
def test_a_line_that_is_no_record_is_named(write, line):
    with pytest.raises(DataError, match=r"line 2 of .*recorder\.jsonl is no record of a step(.|\n)*-> remove the line"):
        read_flight_log(write(record(1), end=line + "\n"))


def test_logs_that_cannot_be_read_are_refused(write, tmp_path):
    with pytest.raises(DataError, match=r"no records at .*\n  -> train with log.recorder_every_steps above 0"):
        read_flight_log(tmp_path / "recorder.jsonl")
    with pytest.raises(DataError, match="holds no record\n"):
        read_flight_log(write())
    with pytest.raises(DataError, match=r"line 2 of .* is of other parameters than the first"):
        read_flight_log(write(record(1), record(2, layers=2)))
    with pytest.raises(DataError, match=r"knows no 'flip'\n  -> did you mean 'flips'"):
        read_flight_log(write(record(1))).of("flip")


def test_a_quantity_is_drawn_by_step_and_by_layer(write):
    log = read_flight_log(write(record(2), record(4)))
    left, right = draw_quantity(log, "change").axes
    # Mean over three layers; the embedding is one layer, and has no place on the right.
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.04, 0.08])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.04, 0.08, 0.12])
    assert len(right.lines) == 1
    assert [text.get_text() for text in left.texts] == ["gate_proj", "embed"]
    # What belongs to one step is compared by its mean over all records.
    np.testing.assert_allclose(draw_quantity(log, "flips").axes[1].lines[0].get_ydata(), [0.03, 0.06, 0.09])


def test_names_keep_apart_and_above_the_axis(write):
    rows = [record(1), record(2)]
    for row in rows:
        for number in range(6):
            row["parameters"][f"layers/mlp/p{number}/kernel"] = row["parameters"][GATE] | {"clipped": [0.0] * 3}
    heights = sorted(text.xy[1] for text in draw_quantity(read_flight_log(write(*rows)), "clipped").axes[0].texts)
    assert heights[0] >= 0
    assert np.diff(heights).min() > 0.07


def test_layers_of_different_widths_have_panels_of_their_own(write):
    figure = draw_levels(read_flight_log(write(record(1), record(2))))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["gate_proj, 2 levels", "gate_proj, 4 levels", "embed"]


@pytest.mark.parametrize("steps", [(4,), (1, 2, 3)])
def test_figures_of_any_length_and_of_zeros_are_drawn(write, steps):
    rows = [record(step) for step in steps]
    for row in rows:
        row["parameters"][EMBED]["flips"] = [0.0]
    log = read_flight_log(write(*rows))
    for figure in (*(draw_quantity(log, name) for name in QUANTITIES), draw_heat_maps(log), draw_levels(log)):
        ElementTree.fromstring(inline_svg(figure, "a <figure>", "name"))
    for row in rows:
        row["parameters"][GATE]["flips"] = [0.0] * 3
    log = read_flight_log(write(*rows))
    draw_heat_maps(log)
    assert draw_quantity(log, "flips").axes[0].get_yscale() == "linear"


def test_the_page_of_a_run_tells_what_it_came_to(run_page_folder):
    page = write_run_page(run_page_folder).read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    text = " ".join(parser.text)
    for words in (
        "by paretoq at 1, 2 bits",
        "9 steps of 4 x 32 tokens",
        "1,152",
        "3.2500",
        "Codes",
        "Weights",
        "Scales",
        "Adapters",
    ):
        assert words in text
    assert "&lt;valid&gt;" in page
    assert page.count("<svg") == 1 + 6 + 1 + 1 + 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_run_that_goes_on_or_records_nothing_has_a_page(run_page_folder):
    for name in ("result.json", "evaluations.jsonl"):
        (run_page_folder / name).unlink()
    (run_page_folder / "recorder.jsonl").write_text("")
    page = write_run_page(run_page_folder, run_page_folder / "other.html").read_text(encoding="utf-8")
    assert "the run is not finished" in page
    assert page.count("<svg") == 1


def test_the_command_writes_a_page_and_refuses_what_is_none(run_page_folder, tmp_path, capsys):
    assert main(["report", str(run_page_folder)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (run_page_folder / "report.html").read_text().startswith("<!doctype html>")
    output = tmp_path / "page.html"
    assert main(["report", str(run_page_folder), "-o", str(output)]) == 0
    assert main(["report", str(run_page_folder), "-o", str(output)]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "is no run folder\n  -> name the folder that `lowbit train` wrote" in capsys.readouterr().err
    (run_page_folder / "metrics.jsonl").unlink()
    assert main(["report", str(run_page_folder)]) == 2
    assert "has no metrics.jsonl: nothing was trained in it" in capsys.readouterr().err
    (run_page_folder / "metrics.jsonl").write_text("")
    assert main(["report", str(run_page_folder)]) == 2
    assert "has logged nothing yet" in capsys.readouterr().err
    (run_page_folder / "result.json").write_text("{")
    assert main(["report", str(run_page_folder)]) == 2
    assert "result.json is not JSON" in capsys.readouterr().err
