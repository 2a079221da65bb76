"""`allocate`: from a float model to widths, to a packed file and a run of those widths, and what it refuses."""

import json

import pytest

from lowbit.formats import read
from lowbit.mixed import read_widths
from lowbit.train import load_trained

CALIBRATION = ("--sequences", 4, "--length", 24)


@pytest.fixture(scope="module")
def allocated(float_model, text, tmp_path_factory):
    """The file of an allocation, and what was printed."""
    from lowbit.cli import main

    path = tmp_path_factory.mktemp("allocated") / "w.json"
    arguments = ["allocate", float_model, "--data", text, *CALIBRATION, "--widths", 2, 4, "--budget", 3.5]
    assert main([str(a) for a in (*arguments, "--by", "hessian", "--range", "max", "-o", path)]) == 0
    return path


def test_the_file_says_widths_and_where_they_come_from(allocated, float_model, text):
    record = json.loads(allocated.read_text())
    assert {"by": "hessian", "source": str(float_model), "grid": "paretoq", "seed": 0}.items() <= record.items()
    assert record["bits_per_weight"] <= 3.5
    assert {bits for widths in record["widths"].values() for bits in widths} == {2.0, 4.0}
    assert len(record["source_fingerprint"]) == 32
    assert record["calibration"]["source"] == str(text)
    assert "git_commit" in record
    assert allocated.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not list(allocated.parent.glob(".*"))


def test_a_packed_file_has_these_widths(allocated, float_model, lowbit, tmp_path):
    file = tmp_path / "w.lowbit"
    arguments = ("--method", "rtn", "--range", "max", "--allocation", allocated)
    done = lowbit("quantize", float_model, *arguments, "-o", file)
    assert done.status == 0, done.err
    record, packed = json.loads(allocated.read_text()), read(file)
    for path, widths in record["widths"].items():
        for layer, bits in enumerate(widths):
            assert len(packed.tensors[f"layers.{layer}.{path.replace('/', '.')}"].levels) == 2**bits
    inspected = lowbit("inspect", file, "--json")
    assert json.loads(inspected.out)["bits_per_weight"]["quantized"] == record["bits_per_weight"]
    assert json.loads(inspected.out)["meta"]["quantization"]["widths"] == record["widths"]


def test_a_run_has_these_widths_without_the_file(allocated, train_arguments, lowbit, tmp_path):
    folder = tmp_path / "run"
    assert lowbit(*train_arguments(folder), "--allocation", allocated).status == 0
    record, run = json.loads(allocated.read_text()), load_trained(folder)
    overrides = dict(run.config.quant.overrides)
    for path, widths in record["widths"].items():
        said = overrides[f"layers/{path}"]
        assert (said["layer_bits"] if len(set(widths)) > 1 else (said["bits"],) * 2) == tuple(widths)
    widths, target = read_widths(allocated)
    assert run.config.quant.overrides == widths.overrides(target)  # so the same command resumes it
    file = tmp_path / "run.lowbit"
    assert lowbit("export", folder, "-o", file).status == 0
    done = lowbit("verify", file)
    assert "all equal bit for bit" in done.out, done.err


def test_mistakes_are_refused_before_any_work(allocated, float_model, text, lowbit, tmp_path):
    start = ("allocate", float_model, "--data", text, *CALIBRATION)
    there = ("--widths", 2, 3, "--budget", 3, "-o")
    cases = {
        (*start, *there, tmp_path / "w.txt"): "is to hold JSON",
        (*start, *there, allocated): "w.json exists",
        (*start, *there, tmp_path / "w.json", "--by", "guess"): "unknown measure 'guess'",
        (*start, *there, tmp_path / "w.json", "--granularity", 7): "a group of 7 does not divide the 32 inputs",
        (*start, "--widths", 2, "--budget", 3, "-o", tmp_path / "w.json"): "widths to choose from are 2",
        (*start, "--widths", 2, 9, "--budget", 3, "-o", tmp_path / "w.json"): "the grid 'paretoq' has no 9 bits",
        (*start, "--widths", 2, 3, "--budget", "nan", "-o", tmp_path / "w.json"): "--budget nan is no number of bits",
    }
    quantize = ("quantize", float_model, "--method", "rtn", "-o", tmp_path / "w.lowbit")
    cases |= {
        quantize: "one of --bits and --allocation says to what width",
        (*quantize, "--allocation", allocated, "--bits", 3): "one of --bits and --allocation says to what width",
        (*quantize, "--allocation", allocated, "--granularity", 8): "the allocation says what --granularity is",
        (*quantize, "--allocation", text): "holds no allocation of widths",
        ("quantize", float_model, "--method", "hqq", "-o", tmp_path / "w.lowbit", "--allocation", allocated): (
            "hqq cannot round to the grid 'paretoq'"
        ),
    }
    for arguments, message in cases.items():
        done = lowbit(*arguments)
        assert done.status == 2, message
        assert message in done.err
    assert not list(tmp_path.iterdir())


def test_a_budget_that_is_too_small_says_the_least_before_any_work(float_model, text, lowbit, tmp_path):
    arguments = ("--widths", 2, 3, "--budget", 2, "-o", tmp_path / "w.json")
    done = lowbit("allocate", float_model, "--data", text, *CALIBRATION, *arguments)
    assert done.status == 2
    assert "the narrowest widths take" in done.err
    assert "bits/weight or more" in done.err
    assert not list(tmp_path.iterdir())


def test_losses_serve_another_budget_and_no_other_settings(allocated, float_model, text, lowbit, tmp_path):
    again = ("allocate", float_model, "--data", text, *CALIBRATION, "--widths", 2, 4, "--by", "hessian")
    more = ("--range", "max", "--losses", allocated, "-o", tmp_path / "w.json")
    done = lowbit(*again, "--budget", 3.0, *more)
    assert done.status == 0, done.err
    first, second = (json.loads(path.read_text()) for path in (allocated, tmp_path / "w.json"))
    assert second["losses"] == first["losses"]
    assert second["bits_per_weight"] <= 3.0 < first["bits_per_weight"]
    done = lowbit(*again, "--budget", 3.0, *more, "--overwrite", "--seed", 1)
    assert "were found with another calibration" in done.err
