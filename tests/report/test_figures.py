import xml.etree.ElementTree as ElementTree

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from lowbit.errors import DataError
from lowbit.report import theme
from lowbit.report.curves import Series, draw_curves, read_metrics, smooth
from lowbit.report.frontier import draw_frontier, write_frontier
from lowbit.report.histograms import WeightHistogram, draw_histograms
from lowbit.report.labels import spread
from lowbit.report.results import rows_from
from lowbit.report.svg import inline_svg


def test_frontier_shows_every_row_where_it_belongs(items):
    rows = rows_from(items)
    left, right = draw_frontier(rows).axes
    drawn = {(x, y) for line in left.lines if line.get_marker() != "None" for x, y in line.get_xydata()}
    assert drawn == {(row.bits_per_weight, row.nll) for row in rows if row.method != "float"}
    drawn = {(x, y) for line in right.lines if line.get_marker() != "None" for x, y in line.get_xydata()}
    assert drawn == {(row.bytes / 1e6, row.nll) for row in rows}


def test_frontier_states_what_training_wins_at_two_bits(items):
    words = [text.get_text() for text in draw_frontier(rows_from(items)).axes[0].texts]
    assert "−3.10 nats" in words
    without = [item for item in items if item["bits"] != 2]
    words = [text.get_text() for text in draw_frontier(rows_from(without)).axes[0].texts]
    assert not any("nats" in word for word in words)


@pytest.mark.parametrize("keep", ["float", "qat"])
def test_frontier_of_one_method_alone_can_be_drawn(items, keep, tmp_path):
    write_frontier([row for row in rows_from(items) if row.method == keep], tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error():
    with pytest.raises(DataError, match="no results to draw"):
        draw_frontier([])
    with pytest.raises(DataError, match="no runs to draw"):
        draw_curves({})
    with pytest.raises(DataError, match="no weights to draw"):
        draw_histograms([])


def test_methods_keep_their_colours_and_unknown_ones_get_their_own():
    marks = theme.method_marks(["new", "qat", "other"])
    assert marks["qat"] == theme.method_marks(["qat"])["qat"]
    assert len({colour.role for colour, _ in marks.values()}) == 3


def test_light_colours_differ_so_that_each_can_become_its_variable():
    assert len({colour.light for colour in theme.COLOURS}) == len(theme.COLOURS)


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", [theme.INK, theme.MUTED, *theme.SERIES], ids=lambda colour: colour.role)
@pytest.mark.parametrize("form", ["light", "dark"])
def test_words_have_the_contrast_that_accessibility_asks_for(colour, form):
    """4.5 is level AA of WCAG 2.1 for text: every series colour also writes its label."""
    shades = sorted([_luminance(getattr(colour, form)), _luminance(getattr(theme.PAPER, form))])
    assert (shades[1] + 0.05) / (shades[0] + 0.05) >= 4.5


def test_metrics_are_read_by_name_and_a_cut_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3, "note": "x"}\n{"step": 2, "loss": 2.5, "val": 9}\n{"step": 3, "lo')
    metrics = read_metrics(path)
    assert metrics.keys() == {"loss", "val"}
    np.testing.assert_array_equal(metrics["loss"].steps, [1, 2])
    np.testing.assert_array_equal(metrics["loss"].values, [3, 2.5])
    np.testing.assert_array_equal(metrics["val"].steps, [2])


@pytest.mark.parametrize("line", ["{}", "3", "{", '{"step": null}'])
def test_a_bad_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=r"line 2 of .* is no JSON object with a 'step'"):
        read_metrics(path)


def test_missing_metrics_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no metrics at"):
        read_metrics(tmp_path / "metrics.jsonl")
    series = Series(np.arange(3), np.ones(3))
    with pytest.raises(DataError, match=r"'a' did not log 'loss'\n  -> did you mean 'los'"):
        draw_curves({"a": {"los": series}})


@pytest.mark.parametrize("length", [1, 2, 300])
def test_curves_of_any_length_are_named_at_their_ends(length):
    falling = Series(np.arange(length), np.linspace(5.0, 3.0, length))
    axes = draw_curves({"2 bit": {"loss": falling}}).axes[0]
    assert axes.texts[0].get_text().startswith("2 bit")


def test_smoothing_keeps_a_straight_line_straight():
    line = np.linspace(5.0, 3.0, 50)
    np.testing.assert_allclose(smooth(line, 7), line, rtol=1e-12)


@hypothesis.given(strategies.lists(strategies.floats(-10, 10), min_size=1, max_size=8), strategies.floats(0.01, 3))
def test_spread_keeps_order_and_distance_and_centre(positions, gap):
    placed = spread(positions, gap)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(np.array(placed)[order]) >= gap - 1e-9).all()
    assert np.mean(placed) == pytest.approx(np.mean(positions), abs=1e-9)


def test_spread_leaves_what_is_apart_where_it_is():
    assert spread([3.0, 1.0, 2.0], 0.5) == [3.0, 1.0, 2.0]


def test_histograms_of_every_grid_are_drawn():
    weights = np.random.default_rng(0).normal(size=500)
    grids = {"1 bit": (-1, 1), "2 bit": (-0.75, -0.25, 0.25, 0.75), "4 bit": range(-8, 8), "3 bit": range(-4, 4)}
    figure = draw_histograms([WeightHistogram(name, weights, weights, tuple(g)) for name, g in grids.items()])
    assert [axes.get_title(loc="left") for axes in figure.axes[:4]] == list(grids)


def test_inline_svg_is_well_formed_themed_and_keeps_its_ids_to_itself(items):
    svg = inline_svg(draw_frontier(rows_from(items)), 'a <frontier> & "more"', "frontier")
    ElementTree.fromstring(svg)
    assert not [colour.role for colour in theme.COLOURS if colour.light in svg]
    assert "var(--blue)" in svg
    assert 'id="frontier-' in svg
    assert "url(#frontier-" in svg
    head = svg.split(">", 1)[0]
    assert "viewBox" in head
    assert "height=" not in head
