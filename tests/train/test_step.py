"""The step as a function: accumulation, purity, compilation, vmap, metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowbit.train.optimizers import Group, adamw, with_peak
from lowbit.train.schedules import make_schedule
from lowbit.train.state import TrainState, merge, split
from lowbit.train.step import make_train_step

V = 11
EPS = float(jnp.finfo(jnp.float32).eps)
GROUPS = {"params/table": Group(), "quant/scale": Group(learning_rate=0.1)}


def objective(variables, batch):
    """Least squares: a table looked up by a token predicts the next one."""
    predicted = variables["params"]["table"][batch[:, :-1]] * variables["quant"]["scale"]
    error = predicted - batch[:, 1:].astype(jnp.float32) - variables["grid"]["shift"]
    loss = jnp.mean(jnp.square(error))
    return loss, {"tokens": jnp.float32(error.size), "mean_error": jnp.mean(error)}


def make_state(optimizer, seed=0):
    table = jax.random.normal(jax.random.key(seed), (V,))
    params = {"params": {"table": table}, "quant": {"scale": jnp.ones((), jnp.float32)}}
    return TrainState.create(params, {"grid": {"shift": jnp.float32(0.5)}}, optimizer)


def make_optimizer(learning_rate=1e-2, **settings):
    return adamw(make_schedule("constant", 10), learning_rate, GROUPS, **settings)


def batch(rows=8, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (rows, 6)), jnp.int32)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(parts):
    # Plain gradient descent, so that a difference in gradients is one in parameters, not amplified by Adam.
    optimizer = optax.sgd(0.1)
    state = make_state(optimizer)
    whole, metrics = jax.jit(make_train_step(objective, optimizer))(state, batch())
    pieces, part_metrics = jax.jit(make_train_step(objective, optimizer, parts))(state, batch())
    # Both are float32 sums of the same n = 8 * 5 terms in another order: n eps of the sum of magnitudes, which
    # terms of one sign (the loss) attain, and gradients of at most 10 stay below.
    n = batch().shape[0] * (batch().shape[1] - 1)
    np.testing.assert_allclose(part_metrics["loss"], metrics["loss"], rtol=n * EPS)
    np.testing.assert_allclose(part_metrics["mean_error"], metrics["mean_error"], rtol=n * EPS, atol=10 * n * EPS)
    assert part_metrics["tokens"] == metrics["tokens"] == n
    for a, b in zip(jax.tree.leaves(pieces.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=EPS, atol=0.1 * 10 * n * EPS)


def test_parts_count_by_their_tokens():
    """Masked tokens: parts with few of them must weigh less, or the mean over tokens is another."""

    def masked(variables, rows):
        mask = (rows[:, 1:] > 4).astype(jnp.float32)
        predicted = variables["params"]["table"][rows[:, :-1]]
        tokens = jnp.sum(mask)
        return jnp.sum(mask * jnp.square(predicted - 1.0)) / tokens, {"tokens": tokens}

    optimizer = optax.sgd(0.1)
    state = make_state(optimizer)
    rows = jnp.concatenate([batch(4), jnp.full((4, 6), 9, jnp.int32)])
    _, whole = make_train_step(masked, optimizer)(state, rows)
    _, pieces = make_train_step(masked, optimizer, 4)(state, rows)
    np.testing.assert_allclose(pieces["loss"], whole["loss"], rtol=40 * EPS)
    np.testing.assert_allclose(pieces["grad_norm"], whole["grad_norm"], rtol=40 * EPS)


def test_second_step_does_not_compile_again_and_the_state_is_consumed():
    traced = []

    def counted(variables, rows):
        traced.append(rows.shape)
        return objective(variables, rows)

    optimizer = make_optimizer()
    step = jax.jit(make_train_step(counted, optimizer), donate_argnums=0)
    state, _ = step(make_state(optimizer), batch())
    table = state.params["params"]["table"]
    state, _ = step(state, batch(seed=1))
    assert len(traced) == 1
    assert table.is_deleted()
    assert int(state.step) == 2


def test_a_sweep_over_seeds_rates_and_grids_is_one_vmap():
    optimizer = make_optimizer()
    seeds, rates, shifts = (0, 1, 2), (1e-3, 1e-2, 1e-1), (0.0, 0.5, 1.0)
    states = []
    for seed, rate, shift in zip(seeds, rates, shifts, strict=True):
        state = make_state(optimizer, seed)
        state = dataclasses.replace(
            state,
            constants={"grid": {"shift": jnp.float32(shift)}},
            opt_state=with_peak(state.opt_state, rate),
        )
        states.append(state)
    step = make_train_step(objective, optimizer)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, metrics = jax.jit(jax.vmap(step, in_axes=(0, None)))(together, batch())
    np.testing.assert_allclose(metrics["learning_rate"], rates, rtol=1e-6)
    for i, state in enumerate(states):
        alone, alone_metrics = jax.jit(step)(state, batch())
        np.testing.assert_allclose(metrics["loss"][i], alone_metrics["loss"], rtol=40 * EPS)
        # Adam's first step is rate * sign(gradient) up to eps, whatever the rounding of the gradient.
        np.testing.assert_allclose(together.params["params"]["table"][i], alone.params["params"]["table"], rtol=1e-5)


def test_constants_are_not_touched_and_metrics_are_what_they_say():
    optimizer = make_optimizer(clip_norm=0.5)
    state = make_state(optimizer)
    after, metrics = make_train_step(objective, optimizer)(state, batch())
    assert after.constants == state.constants
    grads = jax.grad(lambda p: objective(merge(p, state.constants), batch())[0])(state.params)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
    assert metrics["grad_norm"] > 0.5  # before clipping
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(state.params), rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2, rtol=1e-6)
    assert bool(metrics["finite"])


def test_a_broken_step_says_so():
    optimizer = make_optimizer()
    state = make_state(optimizer)
    broken = dataclasses.replace(state, constants={"grid": {"shift": jnp.float32(np.inf)}})
    _, metrics = make_train_step(objective, optimizer)(broken, batch())
    assert not bool(metrics["finite"])


def test_a_step_that_breaks_the_parameters_says_so():
    optimizer = make_optimizer(1e38, clip_norm=None)
    _, metrics = make_train_step(objective, optimizer)(make_state(optimizer), batch())
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not bool(metrics["finite"])


def test_bad_accumulation_is_refused():
    optimizer = make_optimizer()
    with pytest.raises(ValueError, match="accumulate must be at least 1, not 0"):
        make_train_step(objective, optimizer, 0)
    with pytest.raises(ValueError, match="8 rows cannot be cut into 3 equal parts"):
        make_train_step(objective, optimizer, 3)(make_state(optimizer), batch())


def test_split_and_merge_are_inverse():
    tree = {"params": {"a": {"x": 1, "y": 2}, "b": 3}, "quant": {}}
    chosen, rest = split(tree, {"params/a/x", "params/b"})
    assert chosen == {"params": {"a": {"x": 1}, "b": 3}}
    assert rest == {"params": {"a": {"y": 2}}, "quant": {}}
    assert merge(chosen, rest) == tree
    with pytest.raises(ValueError, match="both trees hold the leaf 'b'"):
        merge(tree, {"params": {"b": 4}})
