"""The quickstart in small: one width, few steps, everything that it promises to leave behind."""

import json
import sys
from pathlib import Path

import jax
import pytest
from meshes import on_one_device

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.quickstart import main, put_aside, quickstart  # noqa: E402
from lowbit import formats  # noqa: E402

SMALL = [
    *("train.tokens=4096", "train.batch_size=8", "log.every_steps=2"),
    *("evaluation.windows=8", "evaluation.batch_size=8"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run for all tests here, which keeps the compilation cache of the suite."""
    cache = jax.config.jax_compilation_cache_dir
    with on_one_device(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # configs and assets are named from there
        out = tmp_path_factory.mktemp("runs") / "quickstart"
        rows = quickstart(out, (2.0,), SMALL)
    assert jax.config.jax_compilation_cache_dir == cache
    return out, rows


def test_training_beats_rounding_by_over_a_nat(finished):
    _, rows = finished
    nll = {row.name: row.nll for row in rows}
    assert set(nll) == {"float", "rtn 2 bit", "rtn_mse 2 bit", "qat 2 bit"}
    assert nll["float"] < nll["qat 2 bit"] < nll["rtn 2 bit"] - 1
    # Four steps; the whole quickstart takes 73, and wins by over a nat against this one too.
    assert nll["qat 2 bit"] < nll["rtn_mse 2 bit"] - 0.5


def test_the_packed_model_is_the_trained_one_and_small(finished):
    out, rows = finished
    (qat,) = (row for row in rows if row.method == "qat")
    (plain,) = (row for row in rows if row.method == "float")
    assert qat.verified is True
    assert qat.bytes == (out / "qat_w2.lowbit").stat().st_size < plain.bytes / 2
    assert formats.read(out / "qat_w2.lowbit", verify=True).meta["origin"]["step"] == 4
    assert qat.bits_per_weight == pytest.approx(2.07, abs=0.01)


def test_the_packed_model_writes_text(finished):
    (qat,) = (row for row in finished[1] if row.method == "qat")
    assert qat.sample.startswith("The old house")
    assert len(qat.sample) > 100


def test_results_and_report(finished):
    out, rows = finished
    results = json.loads((out / "results.json").read_text())
    assert [row["nll"] for row in results] == [row.nll for row in rows]
    assert json.loads((out / "run.json").read_text())["seed"] == 0
    assert (out / "pareto.png").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert all(f"{row.nll:.3f}" in page for row in rows)
    assert "http-equiv" not in page
    assert 'src="http' not in page


def test_a_mistake_is_refused_before_anything_is_touched(finished, capsys, monkeypatch):
    out, _ = finished
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["quickstart", "--out", str(out), "--set", "train.tokns=1"])
    assert main() == 2
    assert "unknown config key 'train.tokns'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["quickstart", "--out", str(out), "--widths", "2", "5"])
    assert main() == 2
    assert "5" in capsys.readouterr().err
    assert (out / "report.html").exists()


def test_an_earlier_run_is_put_aside(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "report.html").touch()
    (tmp_path / "q.1").mkdir()
    put_aside(tmp_path / "q")
    assert (tmp_path / "q.2" / "report.html").exists()
    assert not (tmp_path / "q").exists()
