"""The benchmark of two widths in turns runs in a small form, and its ratio is that of neighbours."""

import json

import pytest

from benchmarks import width_pairs
from lowbit.report.kernel_tables import width_pairs as table


def test_two_widths_take_turns(monkeypatch):
    seconds = {1.58: iter([9.0, 2.0, 3.0, 8.0] * 2), 2.0: iter([9.0, 1.0, 2.0, 4.0] * 2)}
    order = []

    class Stream:
        def __init__(self, case, isa):
            self.bits = case.bits

        def seconds(self):
            order.append(self.bits)
            return next(seconds[self.bits])

    monkeypatch.setattr(width_pairs, "Stream", Stream)
    rows = width_pairs.take_turns(64, 32, (1.58, 2.0), 2, "c", 3)
    assert [row["ratio"] for row in rows] == [2.0, 2.0]
    assert [row["made_first"] for row in rows] == [1.58, 2.0]
    assert rows[0]["seconds"] == {"1.58": 3.0, "2": 2.0}
    assert order[:4] == [2.0, 1.58, 1.58, 2.0]


@pytest.mark.usefixtures("small_streams")
def test_the_record_becomes_a_table(tmp_path):
    output = tmp_path / "pairs.json"
    width_pairs.main(["--kernels", "c", "--threads", "1", "--shapes", "32x64", "--turns", "1", "-o", str(output)])
    record = json.loads(output.read_text())
    assert [row["bits"] for row in record["rows"]] == [[1.58, 2.0]] * 2 + [[1.0, 2.0]] * 2 + [[2.0, 4.0]] * 2
    text = table(record, "markdown")
    assert "| 32 x 64          | 1.58 over 2 bits |" in text
    assert text.count("\n") == 4


@pytest.fixture
def small_streams(monkeypatch):
    monkeypatch.setattr("lowbit.bench.products.TOTAL_BYTES", 1 << 12)
