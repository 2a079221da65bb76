"""The benchmark of the cache runs, and its figures follow from its seconds, its bytes and its losses."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kv_cache import main

MODEL = Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model"


@pytest.mark.slow
def test_speed_memory_and_the_largest_batch(tmp_path):
    output = tmp_path / "new" / "cache.json"
    sizes = ["--lengths", "32", "--batches", "2", "--new", "3", "--repeats", "2", "--caches", "bfloat16", "int4"]
    ways = ["--attentions", "products", "sums"]
    main(["--shape", "tiny", "--dtype", "float32", *sizes, *ways, "--memory-gb", "1", "-o", str(output)])
    record = json.loads(output.read_text())
    assert record["bytes_per_token"] == {"bfloat16": 2 * 2 * 2 * 16 * 2, "int4": 2 * 2 * 2 * (8 + 2)}
    assert [(s["attention"], s["cache"]) for s in record["speed"]] == [
        (way, cache) for way in ("products", "sums") for cache in ("bfloat16", "int4")
    ]
    for speed in record["speed"]:
        assert speed["cache_bytes"] == 2 * 35 * record["bytes_per_token"][speed["cache"]]
        assert speed["tokens_per_s"] == pytest.approx(2 * 2 / statistics.median(speed["seconds"]))
        assert speed["memory"]["arguments"] >= speed["cache_bytes"] + record["weight_bytes"]
        assert speed["memory"]["aliased"] >= speed["cache_bytes"]  # the cache is written where it lies
    wide, narrow = record["largest_batch"]  # of the first way alone
    assert wide["attention"] == narrow["attention"] == "products"
    assert narrow["predicted"] > wide["predicted"] > 0
    assert wide["bytes_per_sequence"] >= 35 * record["bytes_per_token"]["bfloat16"]


def test_losses_change_with_what_a_cache_rounds(tmp_path, capsys):
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(3, 4096, 1000).astype(np.uint16))
    sizes = [
        "--lengths",
        "8",
        "--batches",
        "1",
        "--new",
        "2",
        "--repeats",
        "1",
        "--shape",
        "tiny",
        "--dtype",
        "float32",
        "--attentions",
        "products",
    ]
    texts = ["--texts", "2", "--text-length", "24", "--caches", "float32", "int4"]
    main([*sizes, *texts, "--model", str(MODEL), "--tokens", str(tokens)])
    losses = json.loads(capsys.readouterr().out)["losses"]
    assert losses["positions"] == [0, 16, 24]
    exact, rounded = losses["caches"]["float32"], losses["caches"]["int4"]
    assert exact["change"] == 0
    assert rounded["change"] == pytest.approx(rounded["nats"] - exact["nats"])
    assert rounded["change"] != 0
    weights = np.diff(losses["positions"]) / 24
    assert rounded["change"] == pytest.approx(float(weights @ rounded["change_by_position"]))
