"""Widths are data: one compiled step trains them all, side by side under vmap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.numerics.quantizers import paretoq, stored_as
from lowbit.train.learner import make_model
from lowbit.train.objectives import next_token
from lowbit.train.optimizers import with_peak
from lowbit.train.quantization import LINEAR_KERNELS
from lowbit.train.setup import prepare
from lowbit.train.step import make_train_step
from lowbit.tree import Rule

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

WIDTHS, RATES = (1, 2, 4), (1e-2, 1e-3, 1e-4)


def rules_of(bits):
    return (Rule(LINEAR_KERNELS, paretoq(bits)), Rule(".*", stored_as(jnp.float16)))


@pytest.fixture
def experiment(tiny_config):
    return prepare(tiny_config())


def with_widths(experiment, bits):
    rules = rules_of(bits)
    model = make_model(experiment.config, experiment.cfg, rules)
    return dataclasses.replace(experiment, rules=rules, model=model, objective=next_token(model, 2))


@pytest.mark.slow
def test_widths_and_learning_rates_are_one_vmap(experiment):
    layers = experiment.cfg.num_layers
    params = jax.tree.map(jnp.asarray, experiment.params)
    batch = jnp.asarray(experiment.train.batch(0))
    states = []
    for bits, rate in zip(WIDTHS, RATES, strict=True):
        state = with_widths(experiment, (bits,) * layers).make_state(params)
        states.append(dataclasses.replace(state, opt_state=with_peak(state.opt_state, rate)))
    # The step of any of them is the step of all: grids and rates are in the state.
    step = make_train_step(with_widths(experiment, (2,) * layers).objective, experiment.optimizer)
    _, metrics = jax.jit(jax.vmap(step, in_axes=(0, None)))(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), batch
    )
    for i, bits in enumerate(WIDTHS):
        alone = with_widths(experiment, bits)
        wanted, _ = jax.jit(alone.objective)(alone.make_state(params).variables, batch)
        # The same float32 arithmetic in another program: sums of 256 tokens and 64 logits in another order.
        np.testing.assert_allclose(metrics["loss"][i], wanted, rtol=1e-5)
    assert len(set(metrics["loss"].tolist())) == len(WIDTHS)
    peak_share = metrics["learning_rate"] / jnp.asarray(RATES)
    np.testing.assert_allclose(peak_share, peak_share[0], rtol=1e-6)
