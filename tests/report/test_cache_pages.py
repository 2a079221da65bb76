"""The record of the cache's benchmark as tables and a picture: each figure where it belongs."""

import pytest

from lowbit.report.cache_figures import draw
from lowbit.report.cache_tables import largest, losses, machine, speed

RECORD = {
    "device": "some GPU",
    "device_bytes": 64_000_000_000,
    "shape": "tiny",
    "dtype": "bfloat16",
    "jax_version": "0.11",
    "git_commit": "0123456789",
    "date": "2026-11-22T10:00:00",
    "command": "python -m benchmarks.kv_cache",
    "weight_bytes": 1_000_000_000,
    "bytes_per_token": {"bfloat16": 400, "int4": 120},
    "speed": [
        {
            **{"attention": way, "cache": cache, "length": 4096, "batch": batch, "cache_bytes": 2_000_000_000},
            **{"ms_per_step": 1.5, "tokens_per_s": batch / 1.5e-3, "memory": {"temporary": 30_000_000}},
        }
        for way in ("products", "kernel")
        for cache in ("int4", "bfloat16")
        for batch in (1, 16)
    ]
    + [
        {
            **{"attention": "kernel", "cache": "int4", "length": 8192, "batch": 16, "cache_bytes": 70_000_000_000},
            "failed": "RESOURCE_EXHAUSTED",
        }
    ],
    "largest_batch": [
        {"attention": "kernel", "cache": "bfloat16", "length": 4096, "predicted": 103, "ran": 100},
        {"attention": "kernel", "cache": "int4", "length": 4096, "predicted": 350, "ran": 340},
    ],
    "losses": {
        "positions": [0, 16, 1024],
        "caches": {
            "bfloat16": {"nats": 3.0, "change": 0.0, "change_stderr": None, "change_by_position": [0.0, 0.0]},
            "int4": {"nats": 3.2, "change": 0.2, "change_stderr": 0.01, "change_by_position": [0.3, 0.19]},
        },
    },
}


def cells(table):
    """Words of each line below the headings."""
    return [[word.strip() for word in line.strip()[1:-1].split("|")] for line in table.splitlines()[2:]]


def test_speeds_stand_side_by_side():
    rows = cells(speed(RECORD, "markdown"))
    assert [row[:4] for row in rows[:4]] == [
        ["4,096", "1", "bfloat16", "kernel"],
        ["4,096", "1", "bfloat16", "products"],
        ["4,096", "1", "int4", "kernel"],
        ["4,096", "1", "int4", "products"],
    ]
    # 3 GB in 1.5 ms
    assert rows[0][4:] == ["1.50", "667", "2.00", "0.03", "2.00"]
    assert rows[-1] == ["8,192", "16", "int4", "kernel", "RESOURCE_EXHAUSTED", "", "70.00", "", ""]


def test_batches_and_losses_are_held_against_the_first_kind():
    wide, narrow = cells(largest(RECORD, "markdown"))
    assert (wide[-2:], narrow[-2:]) == (["100", "1.00"], ["340", "3.40"])
    rounded = cells(losses(RECORD, "markdown"))[1]
    assert rounded == ["int4", "3.2000", "+0.2000", "0.0100", "+0.3000", "+0.1900"]
    assert ["commit", "0123456"] in cells(machine(RECORD, "markdown"))


def test_the_picture_has_a_panel_a_context_and_one_of_losses():
    figure = draw(RECORD)
    assert len(figure.axes) == 3
    speeds, _, changes = figure.axes
    assert speeds.get_title(loc="center") or speeds.get_title(loc="left")
    wide, narrow = speeds.get_lines()
    assert (wide.get_label(), narrow.get_label()) == ("bfloat16", "int4")
    assert list(narrow.get_xdata()) == [1, 16]
    assert narrow.get_ydata()[1] == pytest.approx(16 / 1.5e-3)
    assert list(changes.get_lines()[1].get_ydata()) == [0.3, 0.19]
