"""The table, the figures and the page of a sweep, from invented numbers."""

import json
import re

import pytest

from lowbit.errors import DataError
from lowbit.report.sweep import best_by_width, read_sweep, settings_of, sweep_table
from lowbit.report.sweep_figures import draw_sweep
from lowbit.report.sweep_page import write_sweep_report

RATES = (1e-4, 1e-3, 1e-2)
FROM_RESULT = ("bits_per_weight", "bits_per_weight_model", "tokens", "seconds", "git_commit", "device", "date")


def make_point(settings, nll):
    record = {
        "name": ",".join(f"{key}={value}" for key, value in settings.items()),
        "settings": settings,
        "error": None if nll is not None else "step 3: loss nan, gradient norm nan",
        "together": 4,
        "evaluations": None if nll is None else {"novels": {"nll": nll, "tokens": 64}, "facts": {"nll": nll + 1}},
        "jax_version": "0.10",
    }
    values = (settings.get("quant.bits", 2) + 0.07, 5.0, 1000, 12.0, "0123", "gpu", "2026-11-22")
    return record | {key: None if nll is None else value for key, value in zip(FROM_RESULT, values, strict=True)}


def make_sweep(points, **changes):
    return {
        "base": "configs/x.py",
        "overrides": ["train.tokens=5"],
        "command": "python -m lowbit sweep <x>.py",
        "git_commit": "0123456789abcdef",
        "lowbit_version": "0.1.0",
        "jax_version": "0.10",
        "python_version": "3.11",
        "device": "a gpu",
        "device_count": 1,
        "seed": 0,
        "date": "2026-11-22T10:00:00+00:00",
        "count": len(points) + 1,
        "points": points,
    } | changes


def grid():
    """Three rates, two widths, two seeds; the largest rate breaks one of the seeds at 1 bit."""
    points = []
    for bits, best in ((1, 4.0), (4, 3.0)):
        for i, rate in enumerate(RATES):
            for seed in (0, 1):
                nll = best + 0.5 * abs(i - (bits == 1)) + 0.02 * seed
                broken = (bits, i, seed) == (1, 2, 1)
                settings = {"quant.bits": float(bits), "optimizer.learning_rate": rate, "seed": seed}
                points.append(make_point(settings, None if broken else nll))
    return points


@pytest.fixture
def write(tmp_path):
    """Returns write(points, **changes) -> the sweep, read from a file."""

    def make(points, **changes):
        (tmp_path / "sweep.json").write_text(json.dumps(make_sweep(points, **changes)))
        return read_sweep(tmp_path / "sweep.json")

    return make


def test_seeds_are_taken_together_and_a_broken_one_is_not_averaged_away(write):
    results = write(grid())
    assert results.axes == ["quant.bits", "optimizer.learning_rate"]
    settings = settings_of(results)
    assert len(settings) == 6
    assert settings[0].mean("novels") == pytest.approx(4.51)
    assert settings[0].spread("novels") == pytest.approx(0.02 / 2**0.5)
    assert settings[2].mean("novels") is None
    best = best_by_width(results)
    assert {bits: setting.values["optimizer.learning_rate"] for bits, setting in best.items()} == {1.0: 1e-3, 4.0: 1e-4}


def test_table(write):
    lines = sweep_table(write(grid()), "markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = [
        "bits",
        "learning rate",
        "runs",
        "novels, nats/token",
        "facts, nats/token",
        "bits/weight",
        "time a point",
        "best",
    ]
    assert cells[0] == heads
    assert cells[2] == ["1", "0.0001", "2", "4.510 ±0.014", "5.510 ±0.014", "1.07", "12 s", ""]
    assert cells[3][-1] == "best"
    assert cells[4][3] == "1 of 2 failed"
    assert len(lines) == 8


def test_figures_show_every_number(write):
    figures = draw_sweep(write(grid()))
    assert list(figures) == ["response", "map", "best"]
    dots = [place for line in figures["response"].axes[0].lines for place in line.get_xydata() if line.get_alpha()]
    assert len(dots) == 11  # one of twelve broke
    words = [text.get_text() for text in figures["response"].axes[0].texts]
    assert words == ["1 bit", "4 bit"]
    words = [text.get_text() for text in figures["map"].axes[0].texts]
    assert words == ["4.510", "4.010", "failed", "3.010", "3.510", "4.010"]
    assert figures["best"].axes[0].texts[0].get_text() == "4.010\nlearning rate 0.001"


def test_figures_are_those_that_the_axes_allow(write):
    widths = [make_point({"quant.bits": float(bits)}, 5.0 - bits) for bits in (1, 2)]
    assert list(draw_sweep(write(widths))) == ["best"]
    rates = [make_point({"optimizer.learning_rate": rate}, 4.0) for rate in RATES]
    assert list(draw_sweep(write(rates))) == ["response"]
    names = [
        make_point({"quant.scale_init": name, "train.batch_size": n}, 4.0) for name in ("mse", "max") for n in (8, 9)
    ]
    results = write(names)
    figures = draw_sweep(results)
    assert list(figures) == ["response", "map"]
    assert figures["response"].axes[0].get_xlabel() == "batch size"
    assert [t.get_text() for t in figures["response"].axes[0].texts] == ["scale init mse", "scale init max"]
    assert draw_sweep(write([make_point({"seed": 0}, None)])) == {}


def test_settings_that_are_not_shown_are_taken_at_their_best(write):
    points = []
    for bits in (1.0, 2.0):
        for rate in RATES:
            for start, loss in (("mse", 0.0), ("max", 0.3)):
                settings = {"quant.bits": bits, "optimizer.learning_rate": rate, "quant.scale_init": start}
                points.append(make_point(settings, 5.0 - bits + loss))
    words = [text.get_text() for text in draw_sweep(write(points))["map"].axes[0].texts]
    assert words == ["4.000"] * 3 + ["3.000"] * 3


def test_report_is_written_beside_its_json(write, tmp_path):
    write(grid())
    page = write_sweep_report(tmp_path).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "sweep.json",
        "table.md",
        "report.html",
        "response.png",
        "map.png",
        "best.png",
    }
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Response",
        "Map",
        "Best of each width",
        "Results",
        "Failed",
        "How this was made",
    ]
    for words in ("12 of 13", "300", "4.010", "step 3: loss nan", "sweep &lt;x&gt;.py", "configs/x.py train.tokens=5"):
        assert words in page
    assert 'src="http' not in page


def test_a_sweep_without_points_or_with_other_fields_is_refused(write, tmp_path):
    with pytest.raises(DataError, match=r"no point of the sweep is finished"):
        sweep_table(write([]), "plain")
    with pytest.raises(DataError, match=r"'seed' in .*sweep\.json is 'x'"):
        write(grid(), seed="x")
    with pytest.raises(DataError, match=r"point 0 of .*sweep\.json has the unknown key 'note'\n"):
        write([make_point({"seed": 0}, 3.0) | {"note": 1}])
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(DataError, match=r"no results at .*sweep\.json"):
        read_sweep(tmp_path / "sweep.json")
