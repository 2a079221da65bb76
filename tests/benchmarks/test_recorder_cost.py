"""The benchmark of the recorder runs, and its shares are those of its seconds."""

import json
import statistics

import pytest

from benchmarks.recorder_cost import main


@pytest.mark.slow
def test_cost_is_the_share_of_a_step(tmp_path):
    output = tmp_path / "new" / "cost.json"
    sizes = ["--batch", "2", "--length", "16", "--steps", "1", "--records", "1", "--repeats", "2"]
    settings = ["model.compute_dtype=float32", "model.remat=none", "train.loss_chunks=1"]
    main(["--shape", "tiny", *sizes, "--set", *settings, "-o", str(output)])
    record = json.loads(output.read_text())
    assert record["quantized_weights"] == 2 * (64 * (64 + 2 * 32 + 64) + 3 * 64 * 128)
    assert len(record["step_seconds"]) == len(record["recorded_step_seconds"]) == len(record["record_seconds"]) == 2
    share = statistics.median(record["record_seconds"]) / statistics.median(record["step_seconds"])
    assert record["cost_at_default"] == pytest.approx(share / 50)
    assert (
        (record["least_every_steps_within_bound"] - 1) * 0.01 < share <= record["least_every_steps_within_bound"] * 0.01
    )
