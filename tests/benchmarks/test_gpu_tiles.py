"""The search for tiles, and the benchmark beside a peer, at toy sizes without a GPU."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import gpu_kernels, gpu_tiles
from lowbit.bench import gpu_products
from lowbit.pallas import tiles


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(gpu_products, "TOTAL_BYTES", 1 << 12)
    monkeypatch.setattr(gpu_products, "TURNS", 4)


def test_tables_of_widths_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tiles, "candidates", lambda blocks, n, tokens: [tiles.Tile(16, 1, 2, 2)])
    parts = []
    for bits in ("4", "8"):
        parts.append(str(tmp_path / f"{bits}.json"))
        gpu_tiles.main(["--bits", bits, "--tokens", "16", "--shapes", "32x512", "--repeats", "1", "-o", parts[-1]])
    gpu_tiles.main(["--merge", *parts, "-o", str(tmp_path / "all.json")])
    table = json.loads((tmp_path / "all.json").read_text())
    assert table["tiles"] == [[4, 16, 32, 512, 16, 1, 2, 2, 1], [8, 16, 32, 512, 16, 1, 2, 2, 1]]
    assert table["fields"][4:] == list(tiles.Tile._fields)
    assert table["gemv"]["tiles"] == []


def test_a_later_table_takes_the_place_of_earlier_rows(tmp_path):
    other, own = tiles.Tile(16, 1, 2, 2), tiles.GemvTile(8, 128, 1, True)
    kept = tiles.Measured(2, 1, 64, 512, own)
    lost = tiles.Measured(2, 1, 32, 512, own)
    for name, rows in (("old", [kept, lost, lost._replace(tile=other)]), ("new", [lost._replace(tile=other)])):
        gpu_tiles.write_table("H100", rows, tmp_path / name)
    gpu_tiles.merge([str(tmp_path / "old"), str(tmp_path / "new")], tmp_path / "all")
    merged = tiles.measured(json.loads((tmp_path / "all").read_text()))
    assert set(merged) == {kept, lost._replace(tile=other)}


@pytest.mark.parametrize(("seconds", "rows"), [(1e-6, [[2, 1, 32, 512, 8, 128, 1, True]]), (3e-6, [])])
def test_the_kernel_without_tensor_cores_is_noted_where_it_is_faster(tmp_path, monkeypatch, seconds, rows):
    other, own = tiles.Tile(16, 1, 2, 2), tiles.GemvTile(8, 128, 1, True)
    programs = {other: SimpleNamespace(seconds=lambda: 2e-6), own: SimpleNamespace(seconds=lambda: seconds)}
    monkeypatch.setattr(gpu_tiles, "candidates", lambda blocks, n, tokens: [other])
    monkeypatch.setattr(gpu_tiles, "gemv_candidates", lambda words: [own])
    monkeypatch.setattr(gpu_tiles, "_tried", lambda matrices, tokens, tile: programs[tile])
    output = tmp_path / "table.json"
    gpu_tiles.main(f"--bits 2 --tokens 1 --shapes 32x512 --repeats 1 -o {output}".split())
    table = json.loads(output.read_text())
    assert table["gemv"]["tiles"] == rows
    assert table["tiles"] == [[2, 1, 32, 512, *other]]
    assert [row.tile for row in tiles.measured(table)] == [other] + [own] * len(rows)


def test_every_candidate_cuts_evenly():
    for blocks in (1, 7, 28, 56):
        for tokens in gpu_tiles.TOKENS:
            for tile in tiles.candidates(blocks, 4096, tokens):
                assert blocks % (tile.slices * tile.splits) == 0
                assert tile.rows & (tile.rows - 1) == 0


def test_the_benchmark_writes_its_record(tmp_path):
    output = tmp_path / "record.json"
    arguments = "--any-device --shapes 32x512 --bits 2 --batches 1 --repeats 1 --models --output"
    gpu_kernels.main([*arguments.split(), str(output)])
    record = json.loads(output.read_text())
    assert {row["engine"] for row in record["products"]} == {"lowbit", "xla", "reading"}
    assert record["command"].startswith("python -m benchmarks.gpu_kernels --any-device")
