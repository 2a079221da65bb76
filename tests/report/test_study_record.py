"""The record of a study, from invented numbers: distances to the float model among its points."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from lowbit.errors import DataError
from lowbit.report.distances import distances, draw_distances
from lowbit.report.sweep import best_by_width, read_sweep
from lowbit.report.sweep_figures import draw_sweep
from lowbit.report.sweep_page import write_sweep_report

ROOT = Path(__file__).parents[2]
POINTS = (
    ({"distill.weight": 0.0, "distill.cache": ""}, 3.6, 4.5),
    ({"distill.weight": 0.5, "distill.cache": ""}, 3.5, 3.9),
    ({"distill.weight": 0.5, "distill.cache": "caches/k8"}, 3.55, 4.0),
    ({"quant.method": "float", "distill.weight": 0.0}, 3.0, 3.1),
)


def record_of(settings, val, wiki):
    return {
        "name": ",".join(map(str, settings.values())),
        "settings": settings,
        "error": None,
        "together": 0,
        "evaluations": {"val": {"nll": val}, "wiki": {"nll": wiki}},
        "bits_per_weight": None if "quant.method" in settings else 2.03,
        "bits_per_weight_model": 5.0,
        "tokens": 10_000_000,
        "seconds": 80.0,
        "git_commit": "0123456789",
        "device": "a gpu",
        "jax_version": "0.11",
        "date": "2026-11-22",
    }


@pytest.fixture
def make(tmp_path):
    """Returns make(points) -> the folder of a sweep."""

    def write(points):
        folder = tmp_path / "sweep"
        folder.mkdir(exist_ok=True)
        head = {
            "base": "configs/x.py", "overrides": [], "command": "python -m lowbit sweep x.py", "git_commit": "01234",
            "lowbit_version": "0.1.0", "jax_version": "0.11", "python_version": "3.12", "device": "a gpu",
            "device_count": 1, "seed": 0, "date": "2026-11-22T10:00:00+00:00", "count": len(points),
        }  # fmt: skip
        (folder / "sweep.json").write_text(json.dumps(head | {"points": [record_of(*point) for point in points]}))
        return folder

    return write


def script():
    spec = importlib.util.spec_from_file_location("make_study_record", ROOT / "scripts" / "make_study_record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_distances_are_from_the_float_model_on_every_text(make):
    results = read_sweep(make(POINTS) / "sweep.json")
    found = distances(results)
    assert list(found) == ["weight 0", "weight 0.5", "weight 0.5, cache caches/k8"]
    assert found["weight 0.5"] == {"val": pytest.approx(0.5), "wiki": pytest.approx(0.8)}
    assert best_by_width(results)[None].mean("val") == 3.5  # float is out of competition
    assert list(draw_sweep(results)) == ["distances"]
    (axes,) = draw_distances(results).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found)
    bars = [bar.get_width() for container in axes.containers for bar in container]
    assert bars == pytest.approx([0.6, 0.5, 0.55, 1.4, 0.8, 0.9])
    assert {text.get_text() for text in axes.texts} >= {"+0.500 (3.500)", "+0.900 (4.000)"}


def test_a_study_becomes_a_record_and_a_page(make, tmp_path):
    folder = make(POINTS)
    record = tmp_path / "2026-11-22_losses"
    module = script()
    module.write_record(ROOT / "configs" / "sweeps" / "distillation_losses.py", folder, record)
    text = (record / "README.md").read_text()
    assert text.startswith("# Two bits at equal tokens: cross entropy")
    assert text.index("weight 0.5: +0.500 / +0.800") < text.index("weight 0: +0.600 / +1.400")
    assert re.search(r"\| +float \|", text)
    assert "(3.000 / 3.100)" in text
    assert (record / "sweep.json").read_bytes() == (folder / "sweep.json").read_bytes()
    assert (record / "distances.png").stat().st_size > 5000
    with pytest.raises(FileExistsError):
        module.write_record(ROOT / "configs" / "sweeps" / "distillation_losses.py", folder, record)
    assert "Distance to float" in write_sweep_report(folder).read_text()


def test_a_sweep_without_a_float_model_is_no_study(make):
    with pytest.raises(DataError, match=r"no point of the sweep is a float model .*\n  -> add one to its points"):
        distances(read_sweep(make(POINTS[:3]) / "sweep.json"))


def test_what_all_points_share_is_not_in_their_names(make):
    shared = {"model.source": "runs/of_some_length"}
    points = tuple((values | shared, *losses) for values, *losses in POINTS[:-1])
    assert list(distances(read_sweep(make((*points, POINTS[-1])) / "sweep.json"))) == [
        "weight 0",
        "weight 0.5",
        "weight 0.5, cache caches/k8",
    ]


def test_long_names_stay_in_the_picture(make):
    """Ten keys that a point changes would push the bars out, and be cut off themselves."""
    many = {f"optimizer.key_{i}": f"a value of some length {i}" for i in range(10)}
    figure = draw_distances(read_sweep(make(((many, 3.5, 3.6), POINTS[-1])) / "sweep.json"))
    figure.draw_without_rendering()
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text().endswith("…")
    assert label.get_window_extent().x0 >= 0
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 3
