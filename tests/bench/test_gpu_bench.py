"""The benchmark of the GPU's kernel at toy sizes, on portable products: what it measures, says and draws."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.bench import gpu_products
from lowbit.bench.cpu import Peer
from lowbit.bench.gpu import GpuPlan, measure_anywhere, measure_gpu
from lowbit.bench.gpu_products import GpuProduct, Matrices
from lowbit.bench.gpu_reading import Reading, _read
from lowbit.cli import main
from lowbit.errors import KernelError
from lowbit.report.gpu_figures import draw
from lowbit.report.gpu_tables import tables

PLAN = GpuPlan(
    shapes=((512, 64),),
    bits=(2, 3),
    batches=(1, 2),
    models=("tiny",),
    decode_bits=(2,),
    decode_batches=(1,),
    prompt=2,
    tokens=1,
    repeats=1,
)
PEER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if "version" in request:
        answer = {"version": "1"}
    else:
        answer = {"seconds": 0.5 if request["batch"] == 1 else None}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_products, "TOTAL_BYTES", 1 << 14)
    monkeypatch.setattr(gpu_products, "TURNS", 4)
    monkeypatch.setattr(gpu_products, "COPIED_BYTES", 1 << 14)


def test_every_case_is_measured_beside_its_peer(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    peer = Peer("other", [sys.executable, str(tmp_path / "peer.py")], ("q2",), {})
    record = json.loads(json.dumps(measure_anywhere(PLAN, peer, lambda line: None), allow_nan=False))
    for batch in PLAN.batches:
        rows = [row for row in record["products"] if row["batch"] == batch]
        cases = [(row["engine"], row.get("bits"), row.get("group"), row.get("activations")) for row in rows]
        assert cases[:5] == [
            ("lowbit", 2, None, "bfloat16"),
            ("lowbit", 3, None, "bfloat16"),
            ("lowbit", 2, 128, "bfloat16"),
            ("lowbit", 2, None, "int8"),
            ("xla", 16, None, "bfloat16"),
        ]
        # The peer had no time for the larger batch, and bytes are as many there.
        readings = [row for row in rows if row["engine"] == "reading"]
        assert {row["bytes"] for row in readings} == ({row["bytes"] for row in rows[:5]} if batch == 1 else set())
        assert [case for case in cases[5:] if case[0] != "reading"] == (
            [("other", None, None, None)] if batch == 1 else []
        )
    assert all(0 < row["best"] <= row["seconds"] <= row["worst"] for row in record["products"])
    assert [(row["kind"], row["batch"]) for row in record["decoding"]] == [("2 bits", 1), ("bfloat16", 1)]
    shown = tables(record, "plain")
    assert "2 bits, 128 a scale" in shown["gpu.one_token"]
    assert "500000.0" in shown["gpu.batches"]
    assert record["cuda"] is False
    assert "kernel in CUDA C++" in tables(record, "plain")["gpu.machine"]
    assert set(draw(record)) == {"bits", "batch"}
    assert tables(record | {"decoding": []}, "plain")["gpu.decoding"] == "No whole model was timed in this run."


def test_shares_of_copying_and_of_reading() -> None:
    """10 us for what copying takes 4 us, and a kernel that only reads it 6 us: 40 % and 60 %."""
    size = {"k": 512, "n": 64, "batch": 1, "bytes": 4000}
    product = size | {"engine": "xla", "bits": 16, "group": None, "activations": "bfloat16"}
    record = {
        **{"device": "x", "jax_version": "0", "git_commit": None, "date": "2026-11-22", "decoding": []},
        **{"copy": {"bytes": 1e9, "seconds": 1.0}, "launch": {"seconds": 1e-6}},
        "products": [
            product | {"seconds": 10e-6, "best": 9e-6},
            size | {"engine": "reading", "kind": "", "seconds": 6e-6, "best": 6e-6},
        ],
    }
    [line] = tables(record, "markdown")["gpu.one_token"].splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")][7:9] == ["40%", "60%"]


def test_reading_reads_as_many_bytes_as_it_says() -> None:
    reading = Reading(100_000)
    assert reading.nbytes == 98_304
    assert reading.seconds() > 0
    words = jnp.arange(8 * 512, dtype=jnp.int32).reshape(8, 512)
    np.testing.assert_array_equal(_read(words, interpret=True), words.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("bits", "nbytes"), [(1, 64), (1.58, 128), (2, 128), (3, 192), (4, 256), (16, 1024)])
def test_bytes_are_what_a_product_reads(bits: float, nbytes: int) -> None:
    """64 outputs of 512 inputs, and a float32 scale an output."""
    assert Matrices(GpuProduct(512, 64, bits)).nbytes == 64 * (nbytes + (0 if bits == 16 else 4))


def test_a_machine_without_such_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KernelError, match=r"is no GPU that the kernel is made for\n  -> run it on an NVIDIA GPU"):
        measure_gpu(PLAN)
    assert main(["bench", "gpu", "--quick"]) == 2
    assert "compute capability 9.0" in capsys.readouterr().err
    assert main(["bench", "gpu", "--threads", "2"]) == 2
    assert "--threads is for bench cpu\n  -> leave out --threads" in capsys.readouterr().err
