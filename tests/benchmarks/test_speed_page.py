"""docs/speed.md from results: a small run's, and none at all."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import train_throughput
from lowbit.report.table import fill_tables, table_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("make_speed_page", ROOT / "scripts" / "make_speed_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(variant, speed, mesh=(1, 1, 1), **more):
    sizes = {"counted": {"peak": 11 * 10**9}, "compiled": {"total": 9 * 10**9}, "peak": 10**10, "peak_is_own": True}
    return {
        "variant": variant,
        "mesh": dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
        "batch_size": 32,
        "sequence_length": 1024,
        "step_seconds": [0.1, 0.1, 0.102],
        "tokens_per_s": speed,
        "model_tflops_per_device": 240.0,
        "share_of_peak": 0.304,
        "speed_over_float": 0.98,
        "speed_over_one_device": 1.9,
        "memory": sizes,
        **more,
    }


@pytest.fixture
def record():
    return {
        "shape": "smollm2-135m",
        "device": "H100",
        "device_count": 2,
        "matmul_peak_flops": 790e12,
        "git_commit": "0123456789",
        "jax_version": "0.10.2",
        "seed": 0,
        "date": "2026-11-22T03:00:00",
        "command": "python -m benchmarks.train_throughput",
        "cases": [
            case("2", 268_400.4),
            case("2", 500_000.0, (1, 2, 1)),
            {"variant": "4", "mesh": {"data": 1, "fsdp": 1, "tensor": 1}, "error": "out of memory: x"},
        ],
    }


def test_tables_have_the_figures_of_the_results(page, record, tmp_path):
    (tmp_path / "train_throughput_x.json").write_text(json.dumps(record))
    profiled = record | {"cases": [case("2", 250_000.0, profile={"matmul": 0.06, "loss": 0.02})]}
    (tmp_path / "train_profile_x.json").write_text(json.dumps(profiled))
    tables = page.tables(tmp_path)
    cells = {name: [line.split("|")[1:-1] for line in text.splitlines()[2:]] for name, text in tables.items()}
    rows = {name: [[cell.strip() for cell in line] for line in lines] for name, lines in cells.items()}
    assert rows["speed.one_device"] == [
        ["H100", "smollm2-135m", "2", "32 x 1,024", "268,400", "0.980", "240.0", "30.4%", "2.0%"],
        ["H100", "smollm2-135m", "4", "", "out of memory", "", "", "", ""],
    ]
    assert rows["speed.meshes"] == [["H100", "smollm2-135m", "2", "fsdp 2", "32 x 1,024", "500,000", "1.90", "30.4%"]]
    assert rows["speed.memory"][0] == [
        *("H100", "smollm2-135m", "2", "1x1x1", "32 x 1,024"),
        *("11.00 GB", "9.00 GB", "10.00 GB", "1.10"),
    ]
    assert rows["speed.profile"] == [["smollm2-135m", "2", "1x1x1", "100.0 ms", "80%", "75.0%", "25.0%"]]
    assert rows["speed.origin"][0][:4] == ["smollm2-135m", "2 x H100", "790 TFLOP/s", "0123456"]


def test_results_of_one_shape_stand_beside_each_other(page, record, tmp_path):
    """Two files of a shape: every row says its batch, and each mesh is against one device of its own file."""
    larger = record | {"cases": [case("2", 300_000.0, batch_size=64), case("2", 570_000.0, (2, 1, 1), batch_size=128)]}
    (tmp_path / "train_throughput_x.json").write_text(json.dumps(record))
    (tmp_path / "train_throughput_x_b64.json").write_text(json.dumps(larger))
    tables = page.tables(tmp_path)
    for name in ("speed.one_device", "speed.memory"):
        assert "| 32 x 1,024" in tables[name]
        assert "| 64 x 1,024" in tables[name]
    assert "data 2 | 128 x 1,024 |" in tables["speed.meshes"]
    assert tables["speed.origin"].count("790 TFLOP/s") == 2


def test_what_the_benchmark_writes_is_what_the_page_reads(page, tmp_path):
    small = ["--shape", "tiny", "--batch", "1", "--length", "16", "--dtype", "float32", "--matmul", "32"]
    once = ["--steps", "1", "--repeats", "1", "--loss-chunks", "1", "--variants", "float"]
    train_throughput.main([*small, *once, "-o", str(tmp_path / "train_throughput_cpu.json")])
    text = page.filled_page(tmp_path)
    assert "| cpu    | tiny  | float   | 1 x 16 |" in text
    assert "1.000" in text  # of float, by itself


def test_a_page_without_results_says_so(page, tmp_path):
    tables = page.tables(tmp_path)
    assert set(table_names(page.PAGE.read_text(encoding="utf-8"))) == set(tables)
    assert tables["speed.one_device"] == page.NOTHING
    assert fill_tables("<!-- table:speed.profile -->\n<!-- /table -->", tables).count("No profile") == 1
