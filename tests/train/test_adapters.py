"""Runs with adapters: what learns, what stays, what lies in memory, and what such runs start from."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.config import base, override
from lowbit.errors import ConfigError, LowbitError, QuantizerError, RuleError
from lowbit.report.run_page import write_run_page
from lowbit.train import load_trained, prepare, run
from lowbit.train.adapters import model_rules
from lowbit.train.checkpoints import Progress, opened
from lowbit.train.memory import count_memory
from lowbit.train.quantization import fixed_codes
from lowbit.train.run_folder import RunFolder
from lowbit.train.sharding import make_abstract_mesh
from lowbit.train.sources import load_masters, load_scales
from lowbit.tree import bits_report, fake_quant, flatten, lookup

pytestmark = pytest.mark.usefixtures("one_device")

KERNEL = "layers/mlp/up_proj/kernel"
NF4 = ("quant.method=nf4", "quant.granularity=16", "optimizer.frozen=params/.*")
ADAPTERS = (*NF4, "adapters.rank=4", "optimizer.learning_rate=0.01")


@pytest.fixture
def make(tiny_config, tmp_path):
    """Returns make(name, *overrides) -> config of a run of that name, without evaluation."""
    return lambda name, *overrides: tiny_config(f"run_folder={tmp_path / name}", "data.valid=", *overrides)


def computed(experiment, variables):
    state = {name: variables[name] for name in ("quant", "grid")}
    return flatten(jax.jit(lambda p, s: fake_quant(experiment.rules, p, s))(variables["params"], state))


def write_start(config):
    """A run folder as `quantize` would leave it: the start of a run."""
    experiment = prepare(config)
    folder = RunFolder(Path(config.run_folder))
    folder.create(config, experiment.cfg, {})
    with opened(folder.checkpoints) as checkpoints:
        checkpoints.save(experiment.initial_state(), Progress(0, 0, 0.0, ""), config)
        checkpoints.wait()
    return config.run_folder


def test_factors_alone_learn_and_codes_take_the_place_of_masters(make):
    config = make("run", *ADAPTERS)
    experiment = prepare(config)
    start = experiment.initial_state()
    assert {path.rsplit("/", 1)[1] for path in flatten(start.params["quant"])} == {"a", "b"}
    assert set(start.params) == {"quant"}
    kernels = fixed_codes(experiment.rules, experiment.params)
    assert len(kernels) == 7
    for path, leaf in flatten(start.constants["params"]).items():
        assert leaf.dtype == (jnp.uint8 if path in kernels else jnp.float32)

    run(config)
    trained = load_trained(config.run_folder)
    for name in ("params", "grid"):
        stayed = trained.params if name == "params" else trained.state["grid"]
        jax.tree.map(np.testing.assert_array_equal, stayed, start.constants[name])
    for path, leaf in flatten(trained.state["quant"]).items():
        assert not np.array_equal(leaf, flatten(start.params["quant"])[path]), path
    # B begins at 0, so that the start is rounding alone; after a step it is not.
    plain = prepare(make("plain", *NF4, "optimizer.frozen="))
    begun = computed(experiment, start.variables)
    np.testing.assert_array_equal(begun[KERNEL], computed(plain, plain.initial_state().variables)[KERNEL])
    ended = flatten(jax.jit(lambda p, s: fake_quant(trained.rules, p, s))(trained.params, trained.state))
    assert not np.array_equal(ended[KERNEL], begun[KERNEL])


def test_a_resumed_run_has_the_bits_of_one_that_was_not_disturbed(make, ends_with_the_same_bits):
    settings = (*ADAPTERS, "adapters.start=loftq", "adapters.rounds=1", "train.tokens=1024")
    cut, whole = (make(name, *settings) for name in ("cut", "whole"))
    ends_with_the_same_bits(cut, whole, 1, 4)


def test_memory_holds_a_byte_a_weight_and_moments_of_factors_alone(make):
    plain, config = (prepare(make(name, *settings)) for name, settings in (("plain", NF4[:2]), ("adapters", ADAPTERS)))
    mesh = make_abstract_mesh({"data": 1, "fsdp": 1, "tensor": 1}, 1)
    before, after = (count_memory(experiment.config, experiment.cfg, mesh) for experiment in (plain, config))
    shapes = {path: np.shape(leaf) for path, leaf in flatten(config.params).items() if path.endswith("_proj/kernel")}
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    factors = sum(layers * 4 * (k + n) for layers, k, n in shapes.values())
    assert before.masters - after.masters == 3 * weights
    assert after.gradients == 4 * factors
    assert after.optimizer == 2 * 4 * factors + 4 * 4  # two moments of each, and the numbers of the schedule
    assert after.scales == before.scales + 4 * factors


def test_factors_lie_as_their_matrix_does(make):
    experiment = prepare(make("cut", *ADAPTERS, "mesh.fsdp=2", "mesh.tensor=2"))
    specs = {path: leaf.sharding.spec for path, leaf in flatten(experiment.abstract_state().params["quant"]).items()}
    spec = jax.sharding.PartitionSpec
    assert specs[f"{KERNEL}/a"] == spec(None, "fsdp", None)
    assert specs[f"{KERNEL}/b"] == spec(None, None, "tensor")
    assert specs["layers/mlp/down_proj/kernel/a"] == spec(None, "tensor", None)
    assert specs["layers/mlp/down_proj/kernel/b"] == spec(None, None, "fsdp")


def test_codes_of_another_run_stay_under_adapters(make):
    grid = ("quant.method=rtn", "quant.bits=3", "quant.symmetric=false", "quant.granularity=16")
    source = write_start(make("source", *grid))
    taken = ("optimizer.frozen=params/.*", f"model.source={source}", "model.source_scales=true", "adapters.rank=2")
    experiment = prepare(make("task", *grid, *taken))
    theirs = load_trained(source)
    theirs_computed = flatten(jax.jit(lambda p, s: fake_quant(theirs.rules, p, s))(theirs.params, theirs.state))
    np.testing.assert_array_equal(
        computed(experiment, experiment.initial_state().variables)[KERNEL], theirs_computed[KERNEL]
    )
    with pytest.raises(ConfigError, match=r"makes codes of its own.*\n  -> set adapters.start=zero"):
        load_scales(make("loftq", *grid, *taken, "adapters.start=loftq"))
    fixed = write_start(make("fixed", *grid, "quant.codes=fixed"))
    with pytest.raises(ConfigError, match=r"made with other scales than those that it learned\n  -> name the run"):
        load_scales(make("of_fixed", *grid, *taken, f"model.source={fixed}"))


def test_what_goes_on_from_a_run_with_adapters_has_their_weights(make):
    source = make("source", *ADAPTERS)
    run(source)
    trained = load_trained(source.run_folder)
    ours = flatten(jax.jit(lambda p, s: fake_quant(trained.rules, p, s))(trained.params, trained.state))
    np.testing.assert_array_equal(flatten(load_masters(source.run_folder).params)[KERNEL], ours[KERNEL])
    again = make("again", *ADAPTERS, f"model.source={source.run_folder}", "model.source_scales=true")
    with pytest.raises(ConfigError, match=r"has adapters beside its codes.*\n  -> name the run that it started from"):
        prepare(again)


def test_overrides_choose_matrices_and_each_has_numbers_of_its_own(make):
    config = make("run", *ADAPTERS)
    config.adapters.overrides = (
        ("layers/mlp/down_proj/kernel", {"rank": 0}),
        ("layers/attn/[qk]_proj/kernel", {"rank": 2, "start": "loftq"}),
    )
    experiment = prepare(config)
    names = {path: lookup(experiment.rules, path).name for path in flatten(experiment.params)}
    assert names["layers/mlp/down_proj/kernel"] == "nf4"
    assert names["layers/attn/q_proj/kernel"] == "nf4_loftq2"
    assert names["layers/attn/v_proj/kernel"] == "nf4_zero4"
    assert names["embed/embedding"] == "float16"
    w = jnp.ones(np.shape(flatten(experiment.params)[KERNEL]))
    starts = [lookup(experiment.rules, f"layers/mlp/{name}_proj/kernel").init(w)["a"] for name in ("up", "gate")]
    assert not np.array_equal(*starts)
    everywhere = make("everywhere", *ADAPTERS)
    everywhere.quant.overrides = (("layers/mlp/.*kernel", {"granularity": 8}),)
    rules = prepare(everywhere).rules  # rules whose matrices all have adapters are no mistake
    assert bits_report(rules, experiment.params).quantized_bits_per_weight > 4


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("adapters.rank=-1",), ConfigError, "adapters.rank=-1\n  -> give a rank of at least 1, or 0 for no adapter"),
        (("adapters.rank=33",), RuleError, "rank 33 does not fit shape .*\n  -> choose a rank of at most"),
        (("adapters.rank=4", "adapters.alpha=0"), QuantizerError, "layers/attn/q_proj/kernel: .*alpha=0.0\n"),
        (
            ("adapters.rank=4", "adapters.start=lofq"),
            QuantizerError,
            "unknown start 'lofq'.*\n  -> did you mean 'loftq'",
        ),
        (("adapters.start=loftq",), ConfigError, "adapters.start='loftq' is set, and no matrix has an adapter"),
        (("adapters.rank=4", "adapters.rounds=0"), QuantizerError, "0 rounds of LoftQ"),
        (
            ("adapters.rank=4", "quant.method=float"),
            QuantizerError,
            "beside codes, and float16 has none\n  -> set quant",
        ),
        (("adapters.rank=4", "quant.codes=fixed"), QuantizerError, "fixed codes.*\n  -> set quant.codes=moving"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_any_work(make, overrides, error, message):
    with pytest.raises(error, match=message):
        prepare(make("run", "quant.method=rtn", "quant.bits=4", *overrides))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ((("layers/attn/qproj/kernel", {"rank": 2}),), RuleError, "'layers/attn/qproj/kernel' matches nothing"),
        ((("layers/attn/.*", {"rnk": 2}),), ConfigError, "unknown key 'rnk'\n  -> did you mean 'rank'"),
        ((("layers/.*/bias", {"rank": 2}),), QuantizerError, "layers/attn/q_proj/bias: .*float16 has none"),
        ((("embed/.*", {"rank": 2}),), ConfigError, "gives the embedding an adapter.*\n  -> let its pattern"),
        ((("layers/attn/.*", {"rank": "2"}),), ConfigError, "adapters.rank='2'\n  -> give a int"),
        (("layers/attn/.*",), LowbitError, "adapters.overrides holds 'layers/attn"),
    ],
)
def test_overrides_that_cannot_be_are_refused(overrides, error, message):
    config = base()
    override(config, ["adapters.rank=4", "quant.method=nf4"])
    config.adapters.overrides = overrides
    with pytest.raises(error, match=message):
        model_rules(config)


def test_a_teacher_and_the_recorder_work_beside_adapters(make):
    source = write_start(make("float", "quant.method=float"))
    config = make("taught", *ADAPTERS, f"model.source={source}", "distill.weight=0.5", "log.recorder_every_steps=1")
    run(config)
    lines = [json.loads(line) for line in (Path(config.run_folder) / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "divergence" in lines[0]
    records = [json.loads(line) for line in (Path(config.run_folder) / "recorder.jsonl").read_text().splitlines()]
    assert [row["step"] for row in records] == [1, 2]
    first, second = (row["parameters"][KERNEL] for row in records)
    assert first["update"] == first["update_step"]  # it begins at nothing
    assert all(0 < a < b for a, b in zip(first["update"], second["update"], strict=True))
    assert "Adapters" in write_run_page(config.run_folder).read_text()


@pytest.mark.slow
def test_runs_on_a_mesh_learn_what_one_device_learns(make):
    losses = []
    for name, mesh in (("one", ()), ("cut", ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"))):
        config = make(name, *ADAPTERS, "adapters.start=loftq", "adapters.rounds=1", *mesh)
        run(config)
        losses.append(
            [json.loads(line)["loss"] for line in (Path(config.run_folder) / "metrics.jsonl").read_text().splitlines()]
        )
    # Sums of float32 in another order; Adam's first step makes of any gradient, however small, one of its rate.
    np.testing.assert_allclose(*losses, rtol=1e-5)
