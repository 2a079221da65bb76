"""`sweep` on the command line: from a file to a table, and what it refuses."""

import json

import pytest

SWEEP = """
from lowbit.sweep import Sweep, product

def get_sweep():
    return Sweep("configs/qat_quickstart.py:smoke", product({"quant.bits": (1, 4), "seed": (0,)}))
"""


@pytest.fixture
def arguments(tmp_path, text, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)  # where the paths of a sweep start
    (tmp_path / "widths.py").write_text(SWEEP)
    data = [f"--config.data.{part}={text}" for part in ("train", "valid")]
    quick = ["--config.log.progress=false", "--config.log.recorder_every_steps=0", "--config.quant.scale_init=max"]
    return ["sweep", tmp_path / "widths.py", "-o", tmp_path / "out", *data, *quick]


def test_a_sweep_leaves_its_table_and_report(lowbit, arguments, tmp_path):
    done = lowbit(*arguments, "--dry-run")
    assert done.status == 0
    assert "one program for 2 points, 1 at once" in done.out
    assert not (tmp_path / "out").exists()
    done = lowbit(*arguments)
    assert done.status == 0, done.err
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| bits |" in table
    sweep = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(sweep["points"]) == 2
    for point in sweep["points"]:
        assert f"{point['evaluations']['sea']['nll']:.3f}" in done.out
    assert sweep["command"].startswith(
        f"python -m lowbit sweep {tmp_path / 'widths.py'} -o {tmp_path / 'out'} --config."
    )
    # Finished: nothing is trained, and the report is made again from the JSON.
    (tmp_path / "out" / "report.html").unlink()
    assert lowbit(*arguments, "--resume").status == 0
    assert (tmp_path / "out" / "report.html").exists()
    done = lowbit(*arguments)
    assert done.status == 2
    assert "exists\n  -> go on with --resume, or choose another with -o" in done.err


def test_mistakes_are_refused(lowbit, arguments, tmp_path):
    done = lowbit(*arguments, "--config.optimizer.learning_rat=1")
    assert done.status == 2
    assert "unknown config key 'optimizer.learning_rat'\n  -> did you mean 'optimizer.learning_rate'" in done.err
    done = lowbit("sweep", tmp_path / "width.py")
    assert done.status == 2
    assert "did you mean" in done.err
    done = lowbit(*arguments, "--points-at-once", "-1")
    assert done.status == 2
    assert not (tmp_path / "out").exists()
