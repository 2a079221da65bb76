"""The benchmark of synthesis runs, and its figures follow from its seconds and counts."""

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.synthesis import main

MODEL = Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model"


@pytest.mark.slow
def test_steps_and_waves_are_timed(tmp_path):
    output = tmp_path / "synthesis.json"
    sizes = ["--batches", "4", "--length", "12", "--steps", "2", "--repeats", "2", "--top-k", "5", "--waves", "2"]
    main(["--shape", "tiny", "--dtype", "float32", "--attentions", "products", "sums", "--caches", "float32", *sizes,
          "--model", str(MODEL), "-o", str(output)])  # fmt: skip
    record = json.loads(output.read_text())
    assert [row["attention"] for row in record["steps"]] == ["products", "sums"]
    for row in record["steps"]:
        assert len(row["seconds"]) == 2
        step = statistics.median(row["seconds"]) / 2
        assert row["tokens_per_s"] == pytest.approx(4 / step)
        assert row["cache_bytes"] == 4 * 12 * record["bytes_per_token"]["float32"]
        assert row["read_bytes_per_s"] == pytest.approx((row["cache_bytes"] + record["weight_bytes"]) / step)
    assert record["waves"]["setting"] in record["steps"]
    for wave in record["waves"]["waves"]:
        assert wave["texts"] == 4
        assert wave["kept_tokens_per_s"] == pytest.approx(wave["kept_tokens"] / wave["wall_s"])
        assert 4 <= wave["made_tokens"] <= 4 * 12
        assert wave["teacher_s"] <= wave["wall_s"]
        # Texts of 12 tokens are all too short to be kept.
        assert (wave["dropped"], wave["kept_tokens"]) == ({"short": 4}, 0)


def test_a_setting_that_does_not_run_is_recorded(tmp_path, monkeypatch):
    import jax

    def out_of_memory(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    output = tmp_path / "synthesis.json"
    sizes = ["--batches", "2", "4", "--length", "8", "--steps", "1", "--repeats", "1", "--caches", "float32"]
    real = __import__("benchmarks.synthesis", fromlist=["advance"]).advance
    monkeypatch.setattr(
        "benchmarks.synthesis.advance",
        lambda *arguments: (out_of_memory if arguments[8].newest.shape[0] == 4 else real)(*arguments),
    )
    main(["--shape", "tiny", "--dtype", "float32", "--attentions", "products", *sizes, "-o", str(output)])
    ran, failed = json.loads(output.read_text())["steps"]
    assert ran["tokens_per_s"] > 0
    assert failed["failed"].startswith("RESOURCE_EXHAUSTED")
