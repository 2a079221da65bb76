"""EfQAT: which output channels learn, that nothing else moves, and that a choice survives resumption and meshes."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowbit.config import base, from_json, to_json
from lowbit.errors import ConfigError
from lowbit.train import load_trained, prepare, run, sharding
from lowbit.train.channels import CHOICES, ChannelState, importance, only_chosen_channels
from lowbit.train.optimizers import Group, adamw, muon
from lowbit.train.schedules import make_schedule
from lowbit.train.step import make_train_step
from lowbit.tree import flatten

pytestmark = pytest.mark.usefixtures("one_device")

EPS = float(jnp.finfo(jnp.float32).eps)
EFQAT = ("quant.bits=4", "optimizer.channel_share=0.25", "optimizer.channel_every_steps=3")
CONSTANT = make_schedule("constant", 10)
KERNEL, NORM = "params/kernel", "params/norm"


@pytest.fixture
def make(tiny_config, tmp_path):
    """Returns make(name, *overrides) -> config of a run of that name, without evaluation."""
    return lambda name, *overrides: tiny_config(f"run_folder={tmp_path / name}", "data.valid=", *overrides)


def chosen_by(name, share):
    # Two layers of four channels, and one matrix of two.
    importances = [jnp.array([[1.0, 4.0, 2.0, 3.0], [9.0, 8.0, 0.5, 0.25]]), jnp.array([5.0, 5.0])]
    return [flags.tolist() for flags in CHOICES[name](importances, share)]


def test_channels_are_chosen_in_each_matrix_in_the_network_or_as_whole_matrices():
    assert chosen_by("matrix", 0.5) == [[[False, True, False, True], [True, True, False, False]], [True, False]]
    assert chosen_by("matrix", 0.01) == [[[False, True, False, False], [True, False, False, False]], [True, False]]
    assert chosen_by("network", 0.4) == [[[False] * 4, [True, True, False, False]], [True, True]]
    # Means are 2.5, 4.4375 and 5: of ten channels the last matrix has two, and the second layer four more.
    assert chosen_by("layer", 0.6) == [[[False] * 4, [True] * 4], [True, True]]
    assert chosen_by("layer", 0.5) == [[[False] * 4, [False] * 4], [True, True]]
    assert chosen_by("layer", 0.1) == [[[False] * 4, [False] * 4], [True, True]]
    assert all(np.all(flags) for name in CHOICES for flags in chosen_by(name, 1.0))


def test_importance_is_the_mean_magnitude_of_a_channel():
    w = jnp.array([[1.0, -4.0], [-3.0, 0.0]])
    np.testing.assert_array_equal(importance(w), [2.0, 2.0])


def partly(make, share=0.5, every=2, choice="matrix", **settings):
    groups = {KERNEL: Group(weight_decay=0.1, orthogonal=make is muon, partial=True), NORM: Group()}
    inner = make(CONSTANT, 0.01, groups, clip_norm=1.0, **settings)
    return inner, only_chosen_channels(inner, [KERNEL], CHOICES[choice], share, every)


def a_tree(seed, k=6, n=4):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(2, k, n)) * np.arange(1, n + 1)  # the last channels matter most
    return {"params": {"kernel": jnp.asarray(kernel, jnp.float32), "norm": jnp.ones(3)}}


@pytest.mark.parametrize("kind", [adamw, muon])
def test_chosen_channels_and_everything_else_move_as_the_optimizer_within_moves_them(kind):
    inner, optimizer = partly(kind)
    params, grads = a_tree(0), a_tree(1)
    cut = {"params": grads["params"] | {"kernel": grads["params"]["kernel"].at[..., :2].set(0.0)}}
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    wanted, _ = jax.jit(inner.update)(cut, inner.init(params), params)
    assert state.chosen["params"]["kernel"].tolist() == [[[False, False, True, True]]] * 2
    np.testing.assert_array_equal(updates["params"]["norm"], wanted["params"]["norm"])
    np.testing.assert_array_equal(updates["params"]["kernel"][..., 2:], wanted["params"]["kernel"][..., 2:])
    # Weight decay alone would move them.
    assert not np.any(updates["params"]["kernel"][..., :2])
    assert np.all(updates["params"]["kernel"][..., 2:])


def test_a_choice_stays_for_so_many_steps_and_moments_of_who_leaves_die_away():
    inner, optimizer = partly(adamw, share=0.25, every=2, b1=0.9, b2=0.95)
    grads = a_tree(1)
    loud = [a_tree(0)["params"] | {"kernel": jnp.ones((2, 6, 4)).at[..., c].set(9.0)} for c in range(4)]
    state = optimizer.init(a_tree(0))
    plain = inner.init(a_tree(0))
    update = jax.jit(optimizer.update)
    # The loudest channel by step, and who is chosen: anew at steps 0, 2, 4 and 6.
    for loudest, chosen in ((0, 0), (1, 0), (1, 1), (1, 1), (3, 3), (0, 3), (0, 0)):
        params = {"params": loud[loudest]}
        updates, state = update(grads, state, params)
        only = jnp.arange(4) == chosen
        assert state.chosen["params"]["kernel"].tolist() == [[only.tolist()]] * 2
        cut = {"params": grads["params"] | {"kernel": jnp.where(only, grads["params"]["kernel"], 0.0)}}
        wanted, plain = inner.update(cut, plain, params)
        # An update is Adam's, at most about 1, and a decay of 0.9 that may cancel it, times the rate of 0.01.
        got, want = (tree["params"]["kernel"][..., chosen] for tree in (updates, wanted))
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPS * 0.02)
    # Channel 1 learned twice, and stood still for three steps since.
    moments = next(leaf for leaf in state.inner if isinstance(leaf, optax.ScaleByAdamState)).mu["params"]["kernel"]
    clipped, _ = optax.clip_by_global_norm(1.0).update(
        {"params": grads["params"] | {"kernel": jnp.where(jnp.arange(4) == 1, grads["params"]["kernel"], 0.0)}},
        optax.EmptyState(),
    )
    wanted = (1 - 0.9**2) * 0.9**3 * clipped["params"]["kernel"][..., 1]
    np.testing.assert_allclose(moments[..., 1], wanted, rtol=16 * EPS)


def test_runs_side_by_side_choose_by_themselves():
    _, optimizer = partly(adamw, choice="network")
    each = [(a_tree(seed), a_tree(seed + 9)) for seed in (0, 1)]
    both, grads = (jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in zip(*each, strict=True))
    _, state = jax.jit(jax.vmap(optimizer.update))(grads, jax.vmap(optimizer.init)(both), both)
    wanted = [optimizer.update(own, optimizer.init(params), params)[1].chosen for params, own in each]
    jax.tree.map(lambda got, *own: np.testing.assert_array_equal(got, np.stack(own)), state.chosen, *wanted)
    assert not np.array_equal(*state.chosen["params"]["kernel"])


def test_a_run_trains_a_share_of_the_channels_and_all_scales(make):
    config = make("run", *EFQAT, "train.tokens=768", "optimizer.frozen=params/(?!layers/.*kernel).*")
    start = prepare(config).initial_state()
    run(config)
    trained = load_trained(config.run_folder)
    kernels = 0
    for path, leaf in flatten(trained.params).items():
        moved = np.any(leaf != flatten(start.variables["params"])[path], axis=-2) if leaf.ndim == 3 else None
        if moved is None:
            np.testing.assert_array_equal(leaf, flatten(start.variables["params"])[path])
        else:
            kernels += 1
            assert (moved.sum(axis=-1) == moved.shape[-1] // 4).all(), path
    assert kernels == 7
    for path, leaf in flatten(trained.state["quant"]).items():
        assert np.all(leaf != flatten(start.variables["quant"])[path]), path


@pytest.mark.parametrize("choice", ["network", pytest.param("layer", marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_disturbed(make, choice, ends_with_the_same_bits):
    # The kill falls between two choices, and weights that move fast change who is chosen.
    settings = (*EFQAT, f"optimizer.channel_choice={choice}", "optimizer.learning_rate=0.3", "train.tokens=1280")
    cut, whole = (make(name, *settings) for name in ("cut", "whole"))
    ends_with_the_same_bits(cut, whole, 1, 5)
    losses = [json.loads(line)["loss"] for line in (Path(cut.run_folder) / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 5


# The choice over the whole network looks at the most devices.
@pytest.mark.parametrize(
    "choice", [name if name == "network" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(CHOICES)]
)
def test_a_sharded_step_equals_that_of_one_device(make, choice):
    # eps=1 makes Adam's step g / (|g| + 1): smooth in g, where the usual eps would amplify rounding near g = 0.
    config = make("cut", *EFQAT, f"optimizer.channel_choice={choice}", "optimizer.eps=1.0")
    experiment = prepare(config)
    start = jax.tree.map(np.asarray, experiment.initial_state())
    step = make_train_step(experiment.objective, experiment.optimizer)
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        sizes = dict(zip(sharding.AXES, shape, strict=True))
        mesh = sharding.make_mesh(sizes, devices=jax.devices()[: math.prod(shape)])
        places = sharding.state_shardings(mesh, start)
        state = sharding.shard_state(jax.tree.map(jnp.asarray, start), places)
        batch = sharding.shard_batch(mesh, experiment.train.batch(0))
        results.append(jax.tree.map(np.asarray, sharding.jit_train_step(step, mesh, places)(state, batch)[0]))
    alone, cut = results
    assert isinstance(alone.opt_state, ChannelState)
    jax.tree.map(np.testing.assert_array_equal, alone.opt_state.chosen, cut.opt_state.chosen)
    # As test_sharding derives it: five standard deviations of 256 tokens' sums through some 60 operations, times a
    # step of at most the learning rate.
    tolerance = 5 * math.sqrt(256 * 60) * EPS * config.optimizer.learning_rate
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(cut.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=EPS, atol=tolerance)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.channel_share=0",), "optimizer.channel_share=0.0\n  -> give a number above 0, to 1"),
        (("optimizer.channel_share=1.5",), "optimizer.channel_share=1.5\n  -> give a number above 0, to 1"),
        ((*EFQAT, "optimizer.channel_every_steps=0"), "channel_every_steps=0\n  -> give at least 1"),
        ((*EFQAT, "optimizer.channel_choice=layr"), "no optimizer.channel_choice 'layr'\n  -> did you mean 'layer'"),
        (("optimizer.channel_choice=layer",), "'layer' is set, and all channels learn\n  -> set optimizer.channel_sh"),
        (
            (*EFQAT, "quant.codes=fixed"),
            "optimizer.channel_share=0.25, and no kernel of the layers learns\n  -> leave optimizer.channel_share out",
        ),
    ],
)
def test_shares_that_cannot_be_are_refused_before_any_work(make, overrides, message):
    with pytest.raises(ConfigError, match=message):
        prepare(make("x", *overrides))
    assert not Path(make("x").run_folder).exists()


def test_configs_of_before_trained_all_channels():
    record = json.loads(to_json(base()))
    for key in ("channel_share", "channel_choice", "channel_every_steps"):
        del record["optimizer"][key]
    assert from_json(json.dumps(record), "here") == base()
