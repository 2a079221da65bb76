"""Kernels of a layer that learn together: the output they are after, what learns, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.models.blockwise import LINEAR_STAGES, apply_block
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Calibration, Options, Plan, make_target, quantize_layers
from lowbit.ptq.block_ap import _order, block_ap_learn
from lowbit.ptq.memory import host_memory
from lowbit.ptq.methods import check
from lowbit.tree import flatten, unflatten

TOKENS = np.random.default_rng(7).integers(0, 40, (16, 24)).astype(np.int32)
KERNELS = [path for stage in LINEAR_STAGES for path in stage]
GRIDS = {"zero_point": (2, 8), "integer": (3, "channel")}
FAST = {"epochs": 10, "batch_size": 4, "weight_rate": 3e-3, "scale_rate": 1e-3}


def targets(grid, bits, granularity):
    return dict.fromkeys(KERNELS, make_target(grid, bits, granularity, "mse"))


def error(cfg, flat, x, goal):
    return float(jnp.mean(jnp.square(apply_block(cfg, unflatten(flat), x) - goal)))


@pytest.fixture(scope="module")
def layer(model, block_of_layer):
    """Sizes, the second layer, its inputs as quantized layers might give them, and those of the float model."""
    cfg, params = model
    y = jnp.asarray(params["embed"]["embedding"][TOKENS.reshape(2, 8, 24)])
    x = y + 0.1 * jnp.asarray(np.random.default_rng(3).standard_normal(y.shape).astype(np.float32))
    return cfg, flatten(block_of_layer(params, 1)), x, y


@pytest.fixture(scope="module")
def block_of_layer():
    return lambda params, index: jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), params["layers"])


@pytest.mark.parametrize("grid", ["zero_point", pytest.param("integer", marks=pytest.mark.slow)])
def test_the_output_comes_nearer_to_that_of_the_float_model(grid, layer):
    cfg, flat, x, y = layer
    wanted = targets(grid, *GRIDS[grid])
    found = block_ap_learn(cfg, "layer 1", flat, x, y, wanted, Options(**FAST))
    goal = apply_block(cfg, unflatten(flat), y[0])
    rounded = {path: METHODS["rtn"].round(path, flat[path], None, wanted[path], Options()).w_hat for path in KERNELS}
    before = error(cfg, {**flat, **rounded}, x[0], goal)
    after = error(cfg, {**flat, **{path: each.w_hat for path, each in found.items()}}, x[0], goal)
    # Ten passes of a few steps take off at least a quarter (a half at 2 bits a group).
    assert after < 0.75 * before
    for path, each in found.items():
        # What training goes on from, and what a file holds.
        assert each.quantizer is wanted[path].quantizer
        np.testing.assert_array_equal(each.quantizer.fake(each.masters, each.state), each.w_hat)
        np.testing.assert_array_equal(each.quantizer.encode(each.masters, each.state).decode(), each.w_hat)
        start = each.quantizer.init(flat[path])
        assert set(each.state) == ({"scale", "zero"} if grid == "zero_point" else {"scale"})
        for name, leaf in each.state.items():
            assert not np.array_equal(leaf, start[name]), (path, name)


def test_what_has_no_rate_stays(layer):
    cfg, flat, x, y = layer
    options = Options(**{**FAST, "epochs": 1, "weight_rate": 0.0})
    found = block_ap_learn(cfg, "layer 1", flat, x, y, targets("paretoq", 2, "channel"), options)
    for path, each in found.items():
        np.testing.assert_array_equal(each.masters, flat[path])
        assert not np.array_equal(each.state["scale"], each.quantizer.init(flat[path])["scale"]), path


def test_batches_are_drawn_by_the_seed_and_see_every_sequence():
    options = Options(epochs=3, batch_size=5)
    order = _order(4, 4, options)
    assert order.shape == (3 * 3, 5, 2)
    seen = (order[..., 0] * 4 + order[..., 1]).reshape(3, 15)
    assert all(len(set(epoch)) == 15 for epoch in seen)
    assert not np.array_equal(order, _order(4, 4, dataclasses.replace(options, seed=1)))
    np.testing.assert_array_equal(_order(2, 8, options)[..., 0] * 8 + _order(2, 8, options)[..., 1], seen.reshape(9, 5))
    assert _order(1, 2, options).shape == (3, 2, 2)


def test_a_model_learns_layer_by_layer_on_one_device_and_on_two(model, tmp_path):
    cfg, params = model
    method, target = METHODS["block_ap"], make_target("zero_point", 2, 8, "mse")
    plan = Plan(method, target, Options(**{**FAST, "epochs": 2}), Calibration(TOKENS, 0, "noise"))
    source = ModelInMemory(Pretrained(cfg, params, {}))

    def quantized(count, **more):
        return list(quantize_layers(source, plan, devices=jax.devices()[:count], **more))

    alone = quantized(1, finished=tmp_path / "layers")
    for layer, other in zip(alone, quantized(2), strict=True):
        for path in KERNELS:
            # Sums in another order, through eight steps of Adam, none of which is longer than its rate.
            np.testing.assert_allclose(layer.leaves[path], other.leaves[path], atol=FAST["weight_rate"])
            assert 0 < layer.kernels[path].error < 1
    # A killed run goes on: the second layer learns what it would have learned.
    (tmp_path / "layers" / "layer_0001.npz").unlink()
    again = quantized(1, finished=tmp_path / "layers")
    for path in KERNELS:
        np.testing.assert_array_equal(again[1].leaves[path], alone[1].leaves[path])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "0 epochs in batches of 8 sequences\n  -> give at least one of both"),
        ({"weight_rate": -1.0}, "a weight rate of -1\n  -> give a finite number"),
        ({"scale_rate": float("nan")}, "a scale rate of nan"),
        ({"weight_rate": 0.0, "scale_rate": 0.0}, "neither weights nor scales would learn"),
    ],
)
def test_what_cannot_learn_is_refused(options, message):
    with pytest.raises(QuantizerError, match=message):
        check(METHODS["block_ap"], make_target("paretoq", 2, 8, "mse"), Options(**options), (32,))


def test_rates_that_break_the_numbers_are_named(layer):
    cfg, flat, x, y = layer
    with pytest.raises(QuantizerError, match=r"the kernels of layer 1 left the numbers.*\n  -> lower --weight-rate"):
        block_ap_learn(cfg, "layer 1", flat, x, y, targets("paretoq", 2, 8), Options(**{**FAST, "weight_rate": 1e38}))


def test_the_host_must_hold_what_the_optimizer_keeps():
    from test_ptq_memory import SEVEN_B, plan

    learning, rounding = (
        host_memory(SEVEN_B, plan(name, 4), packs=True, windows=(0, 0), on_host=True) for name in ("block_ap", "gpfq")
    )
    assert learning.activations == rounding.activations
    assert learning.layer == 2 * rounding.layer
    assert learning.peak < 24 * 2**30
