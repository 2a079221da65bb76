"""The benchmark of the CPU kernels at toy sizes: what it measures, says and draws; not how fast anything is."""

import json
import sys
from pathlib import Path

import pytest

from lowbit.bench import cpu, products
from lowbit.bench.child import Child
from lowbit.bench.cpu import Peer, Plan, measure
from lowbit.bench.random_model import LEVELS, random_model
from lowbit.cli import main
from lowbit.errors import KernelError
from lowbit.kernels import Runtime
from lowbit.report.kernel_figures import draw
from lowbit.report.kernel_tables import tables

PLAN = Plan("c", (1, 2), ((64, 48),), batches=(1, 2), group=32, models=("tiny",), prompt=8, tokens=2, repeats=2)
PEER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if "version" in request:
        answer = {"version": "1", "features": ""}
    elif "product" in request:
        answer = {"seconds": 0.5}
    else:
        answer = {"prompt_seconds": 2.0, "token_seconds": [0.25, 0.25], "peak_bytes": 7_000_000}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "TOTAL_BYTES", 1 << 16)
    monkeypatch.setattr(cpu, "PAUSE", 0)


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    (tmp_path / "peer.py").write_text(PEER)

    def model(folder: Path, shape: str, embedding_bits: int) -> Path:
        (folder / "model").write_text(f"{shape} {embedding_bits}")
        return folder / "model"

    return Peer("other", [sys.executable, str(tmp_path / "peer.py")], ("q4",), {"q4": model})


def test_every_case_is_measured_beside_its_peer(peer: Peer) -> None:
    record = measure(PLAN, peer, lambda line: None)
    json.dumps(record, allow_nan=False)
    cases = [(r["engine"], r.get("bits", r.get("kind")), r["batch"], r["threads"]) for r in record["products"]]
    assert len(cases) == len(record["products"])
    for batch in (1, 2):
        for threads in (1, 2):
            for bits in PLAN.bits:
                assert cases.count(("lowbit", bits, batch, threads)) == 1 + (bits == 2)  # and one with groups
            assert ("other", "q4", batch, threads) in cases
        assert ("numpy", 32, batch, 2) in cases
    assert all(0 < row["best"] <= row["seconds"] <= row["worst"] for row in record["products"])
    # 64 x 48 codes of 2 bits and 48 scales
    assert next(r["bytes"] for r in record["products"] if r.get("bits") == 2) == 64 * 48 // 4 + 2 * 48
    engines = [(row["engine"], row["kind"]) for row in record["decoding"]]
    assert engines == [("lowbit", f"{bits:g}") for bits in PLAN.bits] + [("other", "q4")]
    shown = tables(record, "plain")
    assert "other" in shown["kernels.one_token"]
    assert "4.0" in shown["kernels.decoding"]  # tokens/s of the peer
    assert set(draw(record)) == {"bits", "batch"}


@pytest.mark.parametrize("bits", LEVELS)
def test_random_models_run(bits: float) -> None:
    for embedding_bits in (4, 8, 16):
        runtime = Runtime(random_model("tiny", bits, embedding_bits), kernels="c", threads=1)
        assert len(list(runtime.generate([1, 2], 2, stop_tokens=()))) == 2


def test_a_child_that_fails_is_an_error() -> None:
    with Child([sys.executable, "-c", "raise SystemExit(3)"]) as child, pytest.raises(KernelError, match="status 3"):
        child.ask(version=True)


def test_the_command_prints_tables_and_keeps_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {"shapes": ((64, 48),), "batches": (1,), "models": ("tiny",), "prompt": 4, "tokens": 1}
    monkeypatch.setattr("lowbit.cli.bench.QUICK", quick)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # which the command sets, and monkeypatch puts back
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        monkeypatch.setenv(name, "1")
    output = tmp_path / "bench.json"
    command = ["bench", "cpu", "--quick", "--repeats", "1", "--kernels", "c", "--threads", "1", "-o", str(output)]
    assert main(command) == 0
    assert "of reading" in capsys.readouterr().out
    assert json.loads(output.read_text())["kernels"] == "c"
    assert {path.name for path in tmp_path.glob("*.png")} == {"bench_bits.png", "bench_batch.png"}
    assert main(command) == 2
    assert "exists\n  -> give another name, or --overwrite" in capsys.readouterr().err
    assert main(["bench", "cpu", "-o", str(tmp_path / "x.txt")]) == 2
    assert "is no name for a JSON file" in capsys.readouterr().err
