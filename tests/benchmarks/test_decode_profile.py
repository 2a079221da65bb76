"""The profile of decoding: kernels of a step summed as a trace has them, and a run on this device."""

import json

import pytest

from benchmarks.decode_profile import described, main, summarized
from benchmarks.op_times import DeviceEvent, Instruction
from lowbit.errors import DataError

KNOWN = {
    "custom_call_3": Instruction("custom-call", "jit(generate)/while/body/layers/mlp/up_proj/pallas_call", "triton"),
    "while_1": Instruction("while", "", ""),
}


def step(begin):
    """A step of two layers with one product each, and a draw: 1, 1 and 4 us, with 1 us between them."""
    product = [DeviceEvent("custom-call.3", "packed_2_bits", begin + at, 1e-6) for at in (0, 2e-6)]
    return [*product, DeviceEvent("argmax", "argmax", begin + 4e-6, 4e-6)]


def test_kernels_of_a_step_and_the_time_between_them():
    whole = DeviceEvent("while.1", "while", 0.0, 1.0)  # holds the others
    record = summarized([whole, *step(1.0), *step(1.0 + 9e-6)], KNOWN, steps=2, layers=2)
    assert record["traced_step_us"] == pytest.approx(17 / 2)
    assert record["busy_us"] == pytest.approx(6)
    assert (record["kernels_a_step"], record["kernels_a_layer"]) == (3, 1)
    draw, product = record["kernels"]
    assert draw["kernel"] == "argmax"
    assert draw["operation"] == ""
    assert product["operation"] == "layers/mlp/up_proj/pallas_call"
    assert (product["calls"], product["us_each"]) == (2, pytest.approx(1))
    assert product["share"] == pytest.approx(1 / 3)
    lines = described({"bits": 2, "step_us": 9.0, **record}, rows=1).splitlines()
    assert len(lines) == 3
    assert "3 kernels, 1.0 a layer" in lines[0]
    assert lines[2].split()[-1] == "argmax"


def test_a_trace_without_kernels_is_refused():
    with pytest.raises(DataError, match="has no kernel of the program"):
        summarized([DeviceEvent("while.1", "while", 0.0, 1.0)], KNOWN, steps=1, layers=1)


def test_a_run_on_this_device(tmp_path, capsys):
    output = tmp_path / "profile.json"
    sizes = ["--shape", "tiny", "--context", "4", "--tokens", "4", "--repeats", "1"]
    main([*sizes, "--bits", "2", "--kernels", "gpu", "--graphs", "-o", str(output)])
    (case,) = json.loads(output.read_text())["cases"]
    assert case["kernels_a_layer"] >= 4
    assert sum(row["share"] for row in case["kernels"]) == pytest.approx(1)
    assert sum(row["us"] for row in case["kernels"]) == pytest.approx(case["busy_us"])
    assert any("down_proj" in row["operation"] for row in case["kernels"])
    assert "2 bits:" in capsys.readouterr().err


def test_one_token_has_no_step(capsys):
    with pytest.raises(SystemExit):
        main(["--tokens", "1"])
    assert "2 or more" in capsys.readouterr().err
