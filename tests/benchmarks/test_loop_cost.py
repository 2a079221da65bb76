"""The benchmark of the loop runs, and its figure is that of its timings."""

import json
import statistics

import pytest

from benchmarks.loop_cost import main


@pytest.mark.slow
def test_the_cost_is_what_the_loop_adds(tmp_path):
    output = tmp_path / "cost.json"
    main(["--steps", "10", "--repeats", "1", "-o", str(output)])
    record = json.loads(output.read_text())
    bare, loop = (statistics.median(record[f"{kind}_host_seconds"]) for kind in ("bare", "loop"))
    assert bare > 0
    assert record["loop_over_bare_seconds"] == pytest.approx(loop - bare)
