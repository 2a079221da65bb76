"""Runs whose scales are quantized once more: what is trained is what is shipped, counted, and gone on from."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import formats
from lowbit.config import base, override
from lowbit.errors import ConfigError, QuantizerError
from lowbit.export import pack_model, verify
from lowbit.formats import PackedTensor
from lowbit.generation import Generator
from lowbit.kernels import Runtime
from lowbit.train import load_trained, prepare, run
from lowbit.train.accelerators import accelerator
from lowbit.train.estimate import estimate
from lowbit.train.quantization import quantization_rules
from lowbit.tree import fake_quant, flatten, lookup

pytestmark = pytest.mark.usefixtures("one_device")

KERNEL = "layers/mlp/up_proj/kernel"
METHODS = {
    "qlora": ("quant.method=nf4", "adapters.rank=4", "optimizer.frozen=params/.*", "optimizer.learning_rate=0.01"),
    "learned": ("quant.method=paretoq", "quant.bits=1.58", "optimizer.scale_learning_rate=10"),
    "fixed": ("quant.method=rtn", "quant.bits=4", "quant.symmetric=false", "quant.codes=fixed"),
}
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))


@pytest.fixture
def make(tiny_config, tmp_path):
    """Returns make(name, *overrides) -> config of a run of that name, in groups of 8, without evaluation."""
    common = ("data.valid=", "quant.granularity=8", "quant.double_quant=true")
    return lambda name, *overrides: tiny_config(f"run_folder={tmp_path / name}", *common, *overrides)


def packed_of(trained):
    return pack_model(trained.cfg, trained.params, trained.rules, trained.state, {}, {})


@pytest.mark.parametrize(
    "name", [name if name == "learned" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_trained_model_is_its_file_and_costs_what_was_counted(make, tmp_path, name):
    config = make("run", *METHODS[name])
    run(config)
    trained = load_trained(config.run_folder)
    formats.write(tmp_path / "m.lowbit", packed_of(trained))
    packed = formats.read(tmp_path / "m.lowbit", verify=True)
    found = verify(packed, trained.cfg, trained.params, trained.rules, trained.state, TOKENS)
    assert found.ok, str(found)
    kernels = [tensor for tensor in packed.tensors.values() if isinstance(tensor, PackedTensor)]
    assert len(kernels) == 7 * trained.cfg.num_layers
    assert all(tensor.coded_scale is not None for tensor in kernels)
    # What train records, what estimate says before, and what the file holds, rows of trits in whole bytes and all.
    summary = formats.summarize(packed)
    record = json.loads((Path(config.run_folder) / "result.json").read_text())
    assert record["bits_per_weight"] == pytest.approx(summary.quantized_bits, rel=1e-12)
    assert record["bits_per_weight_model"] == pytest.approx(summary.model_bits, rel=1e-12)
    mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    expected = estimate(make("again", *METHODS[name]), accelerator("h100"), mesh, results=tmp_path)
    assert expected.packed_bytes == summary.tensor_bytes


def test_every_engine_computes_what_it_computes_of_scales_that_are_stored(make):
    config = make("run", *METHODS["learned"])
    run(config)
    packed = packed_of(load_trained(config.run_folder))
    plain = {
        name: dataclasses.replace(tensor, coded_scale=None) if isinstance(tensor, PackedTensor) else tensor
        for name, tensor in packed.tensors.items()
    }
    both = packed, dataclasses.replace(packed, tensors=plain)
    for kernels in ("numpy", "auto"):
        np.testing.assert_array_equal(*(Runtime(model, kernels=kernels).forward(TOKENS) for model in both))
    prompts = [list(map(int, row)) for row in TOKENS]
    texts = [Generator.from_packed(model, dtype=jnp.float32).generate(prompts, 4).tokens for model in both]
    np.testing.assert_array_equal(*texts)


def test_a_scale_that_learns_moves_from_code_to_code(make):
    config = make("run", *METHODS["learned"])
    start = prepare(config).initial_state().variables
    run(config)
    trained = load_trained(config.run_folder)
    quantizer = lookup(trained.rules, KERNEL)
    before, after = (
        quantizer.encode(
            jnp.asarray(flatten(params)[KERNEL]), {"scale": jnp.asarray(flatten(quant)[f"{KERNEL}/scale"])}
        )
        for params, quant in ((start["params"], start["quant"]), (trained.params, trained.state["quant"]))
    )
    assert not np.array_equal(before.coded_scale.codes, after.coded_scale.codes)


def test_a_run_goes_on_with_codes_of_scales_that_were_doubled_and_no_others(make):
    grid = ("quant.method=rtn", "quant.bits=3", "quant.granularity=8")
    source = make("source", *grid)
    run(source)
    theirs = load_trained(source.run_folder)
    taken = (f"model.source={source.run_folder}", "model.source_scales=true", "quant.codes=fixed")
    experiment = prepare(make("task", *grid, *taken))
    variables = experiment.initial_state().variables
    state = {name: variables[name] for name in ("quant", "grid")}
    ours = jax.jit(lambda p, s: fake_quant(experiment.rules, p, s))(variables["params"], state)
    expected = jax.jit(lambda p, s: fake_quant(theirs.rules, p, s))(theirs.params, theirs.state)
    np.testing.assert_array_equal(flatten(ours)[KERNEL], flatten(expected)[KERNEL])
    with pytest.raises(
        ConfigError, match=r"are for quant.double_quant=True \(here False\)\n  -> give both the same grid"
    ):
        prepare(make("other", *grid, *taken, "quant.double_quant=false"))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ("quant.method=onebit",),
            ConfigError,
            r"quant.double_quant=True is set, and quant.method 'onebit' has no such",
        ),
        (("quant.granularity=tensor",), QuantizerError, "paretoq2 has no scales of groups or outputs.*\n  -> leave"),
        (("quant.scale_dtype=float32",), QuantizerError, "scales of paretoq2 are not float16.*\n  -> set quant.scale_"),
    ],
)
def test_what_has_no_scales_to_double_is_refused(overrides, error, message):
    config = base()
    override(config, ["quant.double_quant=true", *overrides])
    with pytest.raises(error, match=message):
        quantization_rules(config.quant)


def test_overrides_choose_whose_scales_are_doubled():
    config = base()
    config.quant.granularity = 8
    config.quant.overrides = (
        ("layers/mlp/.*/kernel", {"double_quant": True}),
        ("embed/embedding", {"method": "nf4", "double_quant": True}),
    )
    rules = quantization_rules(config.quant)
    names = [lookup(rules, path).name for path in (KERNEL, "layers/attn/q_proj/kernel", "embed/embedding")]
    assert names == ["paretoq2_doubled", "paretoq2", "nf4_doubled_transposed"]
    # An override to a method without that choice leaves it behind, as it does others.
    config.quant.double_quant = True
    config.quant.overrides = (("layers/mlp/.*/kernel", {"method": "onebit"}),)
    assert lookup(quantization_rules(config.quant), KERNEL).name == "onebit"
