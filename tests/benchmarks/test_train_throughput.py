"""The training benchmark in small: every variant, meshes, a profile, and what happens when memory runs out."""

import json
import math

import jax
import pytest

from benchmarks import train_throughput
from benchmarks.op_times import KINDS
from benchmarks.shapes import SHAPES
from benchmarks.train_cases import Case, case_config
from lowbit.errors import ConfigError
from lowbit.llama.flops import forward_flops, kernel_weights, train_flops

SMALL = ["--shape", "tiny", "--batch", "2", "--length", "32", "--dtype", "float32", "--matmul", "64", "--loss-chunks=2"]
TAUGHT = "1.58+distill:model.remat=full,train.accumulate=2"
QUICK = [*SMALL, "--steps", "1", "--repeats", "2"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    out = folder / "results" / "train_throughput_tiny.json"
    variants = ["float", TAUGHT]
    profile = ["--profile", str(folder / "profile"), "-o", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_COMMIT", "abc")
        train_throughput.main([*QUICK, "--variants", *variants, "--mesh", "1,2,1", *profile])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_case_is_measured(record):
    cases = {(case["variant"], case["mesh"]["fsdp"]): case for case in record["cases"]}
    assert len(cases) == 4  # two variants on one device, which is added, and on two
    for (variant, fsdp), case in cases.items():
        assert case["batch_size"] == 2 * fsdp
        assert len(case["step_seconds"]) == 2
        seconds = sum(case["step_seconds"]) / 2  # the median of two
        assert case["tokens_per_s"] == pytest.approx(case["batch_size"] * 32 / seconds)
        flops = case["tokens_per_s"] * case["model_flops_per_token"] / fsdp
        assert case["model_tflops_per_device"] == pytest.approx(flops / 1e12)
        assert case["share_of_peak"] == pytest.approx(flops / record["matmul_peak_flops"])
        assert case["speed_over_float"] == case["tokens_per_s"] / cases["float", fsdp]["tokens_per_s"]
        assert case["speed_over_one_device"] == case["tokens_per_s"] / cases[variant, 1]["tokens_per_s"]
        assert case["memory"]["compiled"]["arguments"] > 0
        chance = math.log(512)  # of random tokens; half of it where the other half compares with a teacher alike
        assert case["loss"] == pytest.approx(chance if variant == "float" else chance / 2, rel=0.1)
        assert case["compile_seconds"] > 0
    assert cases[TAUGHT, 1]["remat"] == "full"
    assert cases[TAUGHT, 1]["model_flops_per_token"] == pytest.approx(
        4 / 3 * cases["float", 1]["model_flops_per_token"]
    )
    assert cases["float", 2]["memory"]["compiled"]["arguments"] < cases["float", 1]["memory"]["compiled"]["arguments"]


@pytest.mark.slow
def test_the_profile_sums_up_to_the_kinds_that_a_case_has(record):
    for case in record["cases"]:
        assert set(case["profile"]) == set(KINDS)
        always = {"matmul", "matmul of head", "attention", "loss", "optimizer", "elementwise"}
        seen = {kind for kind, seconds in case["profile"].items() if seconds > 0}
        assert always <= seen
        assert ("collective" in seen) == (case["mesh"]["fsdp"] > 1)


@pytest.mark.slow
def test_the_record_says_where_it_is_from(record):
    assert record["device"] == jax.devices()[0].device_kind
    assert record["git_commit"]
    assert record["kernel_weights"] == kernel_weights(SHAPES["tiny"])
    assert record["command"].startswith("python -m benchmarks.train_throughput --shape tiny")
    assert {"jax_version", "flax_version", "optax_version", "seed", "date", "xla_flags"} <= record.keys()


def test_a_variant_without_memory_is_recorded_and_the_others_go_on(monkeypatch, capsys):
    make = train_throughput.make_bench

    def full_for_float(case, *rest):
        if case.name == "float":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return make(case, *rest)

    monkeypatch.setattr(train_throughput, "make_bench", full_for_float)
    train_throughput.main([*QUICK, "--variants", "float", "2"])
    failed, measured = json.loads(capsys.readouterr().out)["cases"]
    assert failed["error"].startswith("out of memory: RESOURCE_EXHAUSTED")
    assert measured["speed_over_float"] is None
    assert measured["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("variant", "message"),
    [("5x", "a variant is a float, which '5x' is not"), ("2:model.rmat=full", "unknown config key 'model.rmat'")],
)
def test_a_misspelt_variant_costs_nothing(monkeypatch, variant, message):
    monkeypatch.setattr(train_throughput, "matmul_peak", lambda *_: pytest.fail("work began"))
    with pytest.raises(ConfigError, match=message):
        train_throughput.main([*QUICK, "--variants", "float", variant])


def test_too_many_devices_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(train_throughput, "matmul_peak", lambda *_: pytest.fail("work began"))
    with pytest.raises(ConfigError, match=r"mesh \(16, 1, 1\) needs 16 devices, here are 8"):
        train_throughput.main([*QUICK, "--variants", "float", "--mesh", "16,1,1"])


def test_settings_of_a_variant_come_after_those_of_all():
    config = case_config(Case("2:train.batch_size=8", (2, 2, 1)), ["model.remat=none"], 4, 64)
    assert (config.train.batch_size, config.model.remat, config.quant.bits) == (32, "none", 2.0)


def test_flops_are_those_of_a_count_by_hand():
    """The tiny shape, position by position: d=64, ff=128, 4 and 2 heads of 16, 2 layers, 512 tokens."""
    cfg, length = SHAPES["tiny"], 8
    kernels = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    total = 0
    for position in range(length):
        keys = position + 1
        attention = 4 * (2 * 16 * keys + 2 * 16 * keys)  # heads x (scores and mixing)
        total += 2 * (2 * kernels + attention) + 2 * 64 * 512
    assert kernel_weights(cfg) == 2 * kernels
    assert forward_flops(cfg, length) == total / length
    assert train_flops(cfg, length) == 3 * total / length
    assert train_flops(cfg, length, cfg) == 4 * total / length
