"""Runs whose codes stay: what learns, what is frozen, what the file holds, and how such runs follow each other."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lowbit.config import base, from_json, override, to_json
from lowbit.errors import ConfigError
from lowbit.export import pack_model
from lowbit.formats import PackedTensor
from lowbit.train import load_trained, prepare, run
from lowbit.train.checkpoints import Progress, opened
from lowbit.train.memory import count_memory
from lowbit.train.quantization import fixed_codes, quantization_rules
from lowbit.train.recorder import codes, watched, watched_quantizers
from lowbit.train.run_folder import RunFolder
from lowbit.train.sharding import make_abstract_mesh
from lowbit.train.sources import load_masters, load_scales
from lowbit.tree import fake_quant, flatten, lookup

pytestmark = pytest.mark.usefixtures("one_device")

KERNEL = "layers/mlp/up_proj/kernel"
FIXED = ("quant.codes=fixed", "optimizer.frozen=params/.*")
MINMAX = ("quant.method=rtn", "quant.bits=3", "quant.symmetric=false", "quant.granularity=16")


@pytest.fixture
def make(tiny_config, tmp_path):
    """Returns make(name, *overrides) -> config of a run of that name, without evaluation."""
    return lambda name, *overrides: tiny_config(f"run_folder={tmp_path / name}", "data.valid=", *overrides)


def after(source):
    return f"model.source={source}", "model.source_scales=true"


def write(config, seed):
    """A run folder as training would leave it: the start of a run, with scales and zero points that have learned."""
    experiment, rng = prepare(config), np.random.default_rng(seed)
    state = experiment.initial_state()
    quant = jax.tree.map(
        lambda leaf: leaf * rng.uniform(0.7, 1.4, leaf.shape).astype(np.float32), state.params["quant"]
    )
    state = dataclasses.replace(state, params=state.params | {"quant": quant})
    folder = RunFolder(Path(config.run_folder))
    folder.create(config, experiment.cfg, {})
    with opened(folder.checkpoints) as checkpoints:
        checkpoints.save(state, Progress(0, 0, 0.0, ""), config)
        checkpoints.wait()
    return config.run_folder


def computed(trained):
    return flatten(jax.jit(lambda p, s: fake_quant(trained.rules, p, s))(trained.params, trained.state))


def codes_of(trained):
    quantizers = watched_quantizers(trained.rules, trained.params)
    variables = {"params": trained.params, **trained.state}
    return jax.jit(lambda v: codes(quantizers, watched(quantizers, v)))(variables)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def packed(folder):
    """The tensors of a run's file, each of which decodes to what the run computes with."""
    trained = load_trained(folder)
    model = pack_model(trained.cfg, trained.params, trained.rules, trained.state, {}, {})
    ours = computed(trained)
    tensors = {name: tensor for name, tensor in model.tensors.items() if isinstance(tensor, PackedTensor)}
    for name, tensor in tensors.items():
        _, index, rest = name.split(".", 2)
        np.testing.assert_array_equal(tensor.decode(), ours[f"layers/{rest.replace('.', '/')}"][int(index)])
    return tensors


def same(field, a, b):
    return [np.array_equal(getattr(a[name], field), getattr(b[name], field)) for name in a]


def test_files_of_two_tasks_have_the_codes_of_their_start_and_scales_of_their_own(make):
    start = write(make("start", *MINMAX), 0)
    one = make("one", *MINMAX, *FIXED, *after(start), "log.recorder_every_steps=1", "optimizer.learning_rate=0.01")
    run(one)
    two = write(make("two", *MINMAX, *FIXED, *after(start)), 2)
    of_start, of_one, of_two = map(packed, (start, one.run_folder, two))
    for other in (of_one, of_two):
        assert all(same("packed", of_start, other))
    for a, b in ((of_start, of_one), (of_one, of_two)):
        assert not any(same("scale", a, b))
        assert not any(same("zero", a, b))
    records = [json.loads(line) for line in (Path(one.run_folder) / "recorder.jsonl").read_text().splitlines()]
    for figure in ("flips", "moved", "change"):
        assert {value for line in records for row in line["parameters"].values() for value in row[figure]} == {0.0}


def test_runs_follow_each_other_without_a_change_of_codes(make):
    settings = ("quant.layer_bits=4,1.58",)
    start, task = (
        load_trained(write(make("start", *settings), 0)),
        load_trained(write(make("task", *settings, *FIXED, *after(make("start").run_folder)), 1)),
    )
    assert_equal(codes_of(start), codes_of(task))
    # A second task on the first: codes are still the start's, not what the first's scales make of the masters.
    again = prepare(make("again", *settings, *FIXED, *after(make("task").run_folder))).initial_state().variables
    went_on = task._replace(params=again["params"], state={name: again[name] for name in ("quant", "grid")})
    assert_equal(computed(task), computed(went_on))
    # Then codes that move: the masters are what was computed with, as those of the task never learned.
    free = prepare(make("free", *settings, *after(make("task").run_folder)))
    state = free.initial_state().variables
    moving = task._replace(
        rules=free.rules, params=state["params"], state={name: state[name] for name in ("quant", "grid")}
    )
    assert_equal(computed(task), computed(moving))
    assert_equal(codes_of(task), codes_of(moving))


def test_zero_points_that_learned_keep_codes_from_moving(make):
    start = write(make("start", *MINMAX, *FIXED), 0)
    with pytest.raises(
        ConfigError, match=r"zero points of .* learned, and codes that move.*\n  -> set quant.codes=fixed"
    ):
        load_scales(make("free", *MINMAX, *after(start)))
    # Whoever takes the run's weights takes what it learned: its masters hold nothing of that.
    taken, ours = flatten(load_masters(start).params), computed(load_trained(start))
    np.testing.assert_array_equal(taken[KERNEL], ours[KERNEL])


def test_nothing_is_kept_of_masters_that_stand_still(make):
    moving, fixed = (prepare(make(name, *MINMAX, f"quant.codes={name}")) for name in ("moving", "fixed"))
    for experiment in (moving, fixed):
        kernels = {path for path in experiment.frozen if path.endswith("kernel")}
        assert kernels == ({f"params/{p}" for p in fixed_codes(experiment.rules, experiment.params)})
    assert len(fixed.frozen) == 7
    assert not moving.frozen
    # A pattern that takes the same paths is no mistake, nor is one that takes some of them.
    assert (
        prepare(make("x", *MINMAX, "quant.codes=fixed", "optimizer.frozen=params/.*mlp.*kernel")).frozen == fixed.frozen
    )

    mesh, cfg = make_abstract_mesh({"data": 1, "fsdp": 1, "tensor": 1}, 1), fixed.cfg
    before, after_ = (count_memory(experiment.config, cfg, mesh) for experiment in (moving, fixed))
    kernels = sum(leaf.size for path, leaf in flatten(fixed.params).items() if f"params/{path}" in fixed.frozen)
    assert before.optimizer - after_.optimizer == 2 * 4 * kernels
    assert before.gradients - after_.gradients == 4 * kernels
    assert before.masters == after_.masters
    # What PEQA trains: scales and zero points alone.
    alone = count_memory(make("alone", *MINMAX, *FIXED), cfg, mesh)
    scales = sum(leaf.size for leaf in flatten(fixed.abstract_state().params["quant"]).values())
    assert alone.gradients == 4 * scales
    # Two moments of each, a count, and the number, the peak and the rate of steps.
    assert alone.optimizer == 2 * 4 * scales + 4 * 4
    assert alone.masters == before.masters


def test_what_made_the_codes_lies_where_scales_lie(make):
    config = make("cut", *MINMAX, "quant.codes=fixed", "mesh.fsdp=2", "mesh.tensor=2")
    state = prepare(config).abstract_state()
    scales, starts = (
        {path: leaf.sharding.spec for path, leaf in flatten(tree).items()}
        for tree in (state.params["quant"], state.constants["grid"])
    )
    assert scales == starts
    assert scales["layers/mlp/up_proj/kernel/zero"] == jax.sharding.PartitionSpec(None, "fsdp", "tensor")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("quant.codes=fixd",), "unknown quant.codes 'fixd'\n  -> did you mean 'fixed'"),
        (
            ("quant.codes=fixed", "quant.method=onebit"),
            "quant.codes='fixed' is set, and quant.method 'onebit' has no such choice\n"
            "  -> set quant.method=paretoq or rtn, or leave quant.codes at 'moving'",
        ),
    ],
)
def test_codes_that_cannot_be_fixed_are_refused(overrides, message):
    config = base()
    override(config, overrides)
    with pytest.raises(ConfigError, match=message):
        quantization_rules(config.quant)


def test_overrides_inherit_fixed_codes_where_their_method_has_them():
    config = base()
    override(config, ["quant.codes=fixed"])
    config.quant.overrides = (
        ("layers/attn/.*_proj/kernel", {"method": "rtn", "symmetric": False}),
        ("layers/mlp/down_proj/kernel", {"codes": "moving"}),
        ("lm_head/.*", {"method": "float"}),
        ("embed/.*", {"bits": 4}),
    )
    rules = quantization_rules(config.quant)
    names = {"layers/attn/q_proj/kernel": "rtn2_minmax_fixed", "layers/mlp/down_proj/kernel": "paretoq2"}
    names |= {KERNEL: "paretoq2_fixed", "lm_head/kernel": "float16", "embed/embedding": "paretoq4_fixed_transposed"}
    assert {path: lookup(rules, path).name for path in names} == names


def test_configs_of_before_had_codes_that_move():
    record = json.loads(to_json(base()))
    del record["quant"]["codes"]
    assert from_json(json.dumps(record), "here").quant.codes == "moving"
