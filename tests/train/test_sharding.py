"""Eight devices against one, and what cannot be cut."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lowbit.errors import ConfigError, ModelError, RuleError
from lowbit.train import sharding
from lowbit.train.setup import prepare
from lowbit.train.step import make_train_step

EPS = float(jnp.finfo(jnp.float32).eps)
MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2)]


def axes(shape):
    return dict(zip(sharding.AXES, shape, strict=True))


def one_device():
    return sharding.make_mesh(axes((1, 1, 1)), devices=jax.devices()[:1])


def step_on(experiment, mesh, state):
    state = jax.tree.map(np.asarray, state)
    shardings = sharding.state_shardings(mesh, state)
    step = make_train_step(experiment.objective, experiment.optimizer, experiment.config.train.accumulate)
    compiled = sharding.jit_train_step(step, mesh, shardings)
    after, metrics = compiled(
        sharding.shard_state(state, shardings), sharding.shard_batch(mesh, experiment.train.batch(0))
    )
    for leaf, place in zip(jax.tree.leaves(after), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return jax.tree.map(np.asarray, (after, metrics))


def test_a_sharded_step_equals_that_of_one_device(tiny_config):
    # eps=1 makes Adam's step g / (|g| + 1): smooth in g, where the usual eps would amplify rounding near g = 0.
    experiment = prepare(tiny_config("optimizer.eps=1.0", "quant.granularity=8"))
    alone = dataclasses.replace(experiment, mesh=one_device())
    start = alone.initial_state()
    wanted, wanted_metrics = step_on(experiment, alone.mesh, start)
    # The same products summed in another order. Each sum has at most tokens = 256 terms, about 60 follow each other
    # forwards and backwards; independent roundings add up like a random walk. Five standard deviations.
    tolerance = 5 * math.sqrt(256 * 60) * EPS
    rate = float(wanted_metrics["learning_rate"])
    for shape in MESHES:
        got, metrics = step_on(experiment, sharding.make_mesh(axes(shape)), start)
        np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=tolerance)
        np.testing.assert_allclose(metrics["grad_norm"], wanted_metrics["grad_norm"], rtol=tolerance)
        moved = False
        for a, b, c in zip(*map(jax.tree.leaves, (got.params, wanted.params, start.params)), strict=True):
            # A step is at most rate * |g|, and gradients are clipped to a norm of 1.
            np.testing.assert_allclose(a, b, rtol=EPS, atol=rate * tolerance)
            moved = moved or np.abs(b - np.asarray(c)).max() > 100 * rate * tolerance
        assert moved  # or the comparison above would compare nothing


def test_parameters_scales_and_moments_lie_where_the_table_says(tiny_config):
    experiment = prepare(tiny_config("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2", "quant.granularity=8"))
    state = experiment.initial_state()

    def spec(leaf):
        return leaf.sharding.spec

    kernels, scales = state.params["params"]["layers"], state.params["quant"]["layers"]
    assert spec(kernels["attn"]["q_proj"]["kernel"]) == P(None, "fsdp", "tensor")
    assert spec(scales["attn"]["q_proj"]["kernel"]["scale"]) == P(None, "fsdp", "tensor")
    assert spec(kernels["mlp"]["down_proj"]["kernel"]) == P(None, "tensor", "fsdp")
    assert spec(state.params["params"]["embed"]["embedding"]) == P("tensor", "fsdp")
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 3]
    assert len(moments) == 2 * len([leaf for leaf in jax.tree.leaves(state.params) if leaf.ndim == 3])
    assert all("tensor" in spec(leaf) for leaf in moments)
    # One scale for all of an axis is kept by every shard.
    per_channel = {"quant": {"layers": {"mlp": {"down_proj": {"kernel": {"scale": np.ones((2, 1, 32))}}}}}}
    (place,) = jax.tree.leaves(sharding.variable_shardings(experiment.mesh, per_channel))
    assert place.spec == P(None, None, "fsdp")


def test_a_teacher_lies_as_the_parameters_do(tiny_config):
    experiment = prepare(tiny_config("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"))
    shapes = jax.eval_shape(experiment.make_state, experiment.params)
    shapes = dataclasses.replace(shapes, constants=shapes.constants | {"teacher": shapes.params["params"]})
    places = sharding.state_shardings(experiment.mesh, shapes)
    assert places.constants["teacher"] == places.params["params"]
    assert places.constants["teacher"]["layers"]["mlp"]["up_proj"]["kernel"].spec == P(None, "fsdp", "tensor")


def test_every_process_reads_its_own_share_and_those_that_share_rows_the_same():
    assert sharding.batch_share(sharding.make_mesh(axes((4, 1, 2)))) == (0, 1)
    # Processes of the devices [rows, tensor]: one row each; two rows each, not in one piece; a row between two.
    assert sharding._shares(np.array([[0], [1]])) == {0: (0,), 1: (1,)}
    assert sharding._shares(np.array([[0, 0], [1, 1], [0, 0], [1, 1]])) == {0: (0, 2), 1: (1, 3)}
    assert sharding._shares(np.array([[0, 1], [2, 3]])) == {0: (0,), 1: (0,), 2: (1,), 3: (1,)}
    for overlapping in ([[0, 0, 0], [0, 1, 1], [1, 1, 1]], [[0], [0], [1]]):
        with pytest.raises(ConfigError, match="gives its 2 processes rows of a batch that overlap in part"):
            sharding._shares(np.array(overlapping))


def test_a_group_that_would_straddle_devices_is_refused(tiny_config):
    mesh = sharding.make_mesh(axes((1, 4, 2)))
    scale = {"quant": {"layers": {"attn": {"q_proj": {"kernel": {"scale": np.ones((2, 2, 32))}}}}}}
    message = r"q_proj/kernel/scale of shape \(2, 2, 32\): 2 groups cannot be cut 4 ways .* lie on two devices"
    with pytest.raises(ConfigError, match=message):
        sharding.variable_shardings(mesh, scale)


def test_an_axis_that_does_not_divide_is_refused_with_its_path():
    mesh = sharding.make_mesh(axes((1, 4, 2)))
    kernel = {"params": {"layers": {"mlp": {"up_proj": {"kernel": np.ones((2, 30, 64))}}}}}
    message = r"params/layers/mlp/up_proj/kernel of shape \(2, 30, 64\): axis 1 \(30 long\) cannot be cut 4 ways"
    with pytest.raises(ConfigError, match=message):
        sharding.variable_shardings(mesh, kernel)


def test_a_path_without_a_rule_is_refused():
    with pytest.raises(RuleError, match="params/router/kernel"):
        sharding.variable_shardings(one_device(), {"params": {"router": {"kernel": np.ones((2, 2))}}})


def test_heads_are_not_cut_through(tiny_config):
    with pytest.raises(ModelError, match=r"'tensor' of 4 cuts through heads \(4 query, 2 key-value\)"):
        prepare(tiny_config("mesh.tensor=4"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "does not cover 8 devices"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "is no shape"),
        ({"data": -1, "fdsp": 1, "tensor": 1}, "unknown mesh axis 'fdsp'\n  -> did you mean 'fsdp'"),
        ({"data": -1, "tensor": 1}, "no axis 'fsdp'"),
        ({"data": -1, "fsdp": 16, "tensor": 1}, "does not cover"),
    ],
)
def test_bad_meshes_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(sizes)


def test_the_rest_of_the_devices_is_minus_one():
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 2}).shape) == axes((2, 2, 2))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="8 sequences cannot be cut into 2 parts over 8 devices"):
        sharding.check_batch(sharding.make_mesh(axes((8, 1, 1))), 8, 2)
