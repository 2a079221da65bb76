"""Measured speeds: which one is taken for a run."""

import json

import pytest

from lowbit.errors import ConfigError
from lowbit.train.accelerators import ACCELERATORS, accelerator, nearest_measurement

ONE, TWO = ({"data": n, "fsdp": 1, "tensor": 1} for n in (1, 2))


def case(variant, tflops, mesh=ONE):
    return {"variant": variant, "mesh": mesh, "model_tflops_per_device": tflops}


@pytest.fixture
def results(tmp_path):
    small = [case("float", 250.0), case("2", 240.0), case("2:model.remat=full", 260.0), case("2", 230.0, TWO)]
    failed = {"variant": "4", "mesh": ONE, "error": "out of memory"}
    for name, weights, cases in [("135m", 100e6, [*small, failed]), ("1b", 1000e6, [case("2", 350.0)])]:
        record = {"device": "NVIDIA H100 80GB HBM3", "shape": name, "kernel_weights": weights, "cases": cases}
        (tmp_path / f"train_throughput_{name}.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "kind", "mesh", "tflops"),
    [
        (120e6, "float", ONE, 250.0),
        (120e6, "quantized", ONE, 260.0),  # the fastest of what was tried
        (120e6, "quantized", TWO, 230.0),  # the same mesh before the faster settings
        (120e6, "quantized", {**TWO, "data": 8}, 260.0),
        (900e6, "quantized", ONE, 350.0),
    ],
)
def test_the_nearest_measurement_is_taken(results, weights, kind, mesh, tflops):
    found = nearest_measurement(results, accelerator("h100"), int(weights), kind, mesh)
    assert found.flops == tflops * 1e12


def test_what_was_not_measured_is_not_guessed(results, tmp_path):
    assert nearest_measurement(results, accelerator("h100"), 10**8, "distilled", ONE) is None
    assert nearest_measurement(results, accelerator("a100"), 10**8, "quantized", ONE) is None
    record = {"device": "NVIDIA L40S", "shape": "x", "kernel_weights": 10**8, "cases": [case("2", 100.0)]}
    (tmp_path / "train_throughput_l40.json").write_text(json.dumps(record))
    assert nearest_measurement(results, accelerator("l4"), 10**8, "quantized", ONE) is None
    assert nearest_measurement(tmp_path / "absent", accelerator("h100"), 10**8, "quantized", ONE) is None


def test_an_unknown_device_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown device 'h10'\n  -> did you mean 'h100'"):
        accelerator("h10")


def test_devices_are_listed_by_their_names():
    assert all(name == device.name for name, device in ACCELERATORS.items())
