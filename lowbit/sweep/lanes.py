"""How a program trains the points of a batch: one at a time as the loop does, or side by side under `vmap`.

Both compile once for all points that they are given: what differs between points is in the state.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowbit.models.activations import range_variables
from lowbit.train import sharding
from lowbit.train.loop import evaluator
from lowbit.train.objectives import nll_function
from lowbit.train.optimizers import with_peak
from lowbit.train.setup import Experiment
from lowbit.train.state import TrainState, Tree
from lowbit.train.step import Metrics, TrainStep, make_train_step


@runtime_checkable
class Lanes(Protocol):
    """What trains a batch of points; a lane is the place of a point in it."""

    def start(self, experiments: Sequence[Experiment]) -> TrainState:
        """Returns the state of all lanes before the first step, of an experiment each."""

    def step(self, state: TrainState, batches: Sequence[np.ndarray]) -> tuple[TrainState, Metrics]:
        """Takes one step: i32[b t+1] for each lane, one for all where their data is the same; metrics are `[lanes]`.

        The state passed in is consumed.
        """

    def nll(self, state: TrainState, lane: int, batch: np.ndarray) -> jax.Array:
        """Returns the nats f32[b t] that the model of one lane needs for a batch i32[b t+1]."""


class Alone:
    """One lane, on the mesh of the config: bit for bit what `lowbit.train.run` computes."""

    def __init__(self, experiment: Experiment):
        self._mesh = experiment.mesh
        shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state())
        self._starts = _Starts(experiment)
        self._step = sharding.jit_train_step(_pure_step(experiment), experiment.mesh, shardings)
        self._nll = evaluator(experiment, shardings)

    def start(self, experiments: Sequence[Experiment]) -> TrainState:
        """See `Lanes`."""
        (experiment,) = experiments
        placed = experiment.restorable_state().constants
        state = self._starts.make(experiment)
        return dataclasses.replace(state, constants=placed | state.constants)

    def step(self, state: TrainState, batches: Sequence[np.ndarray]) -> tuple[TrainState, Metrics]:
        """See `Lanes`."""
        (batch,) = batches
        state, metrics = self._step(state, sharding.shard_batch(self._mesh, batch))
        return state, jax.tree.map(lambda value: value[None], metrics)

    def nll(self, state: TrainState, lane: int, batch: np.ndarray) -> jax.Array:
        """See `Lanes`."""
        return self._nll(state, batch)


class Together:
    """Lanes under one `vmap`, spread over as many devices as divide them.

    Sums are taken in another order than in `Alone`: results agree as closely as float32 sums, and weights near a tie
    between two levels, let them.
    """

    def __init__(self, experiment: Experiment, lanes: int):
        pure = _pure_step(experiment)
        nll = nll_function(experiment.model, experiment.config.train.loss_chunks)

        def step(own: TrainState, shared: Tree, batch: jax.Array) -> tuple[TrainState, Metrics]:
            after, metrics = pure(dataclasses.replace(own, constants=own.constants | shared), batch)
            return dataclasses.replace(after, constants=own.constants), metrics

        def nll_of_lane(own: TrainState, lane: jax.Array, batch: jax.Array) -> jax.Array:
            return nll(jax.tree.map(lambda leaf: leaf[lane], own).variables, batch)

        devices = jax.devices()[: math.gcd(lanes, jax.device_count())]
        mesh = jax.make_mesh((len(devices),), ("lanes",), axis_types=(AxisType.Auto,), devices=devices)
        self._everywhere, self._by_lane = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("lanes",)))
        self._starts = _Starts(experiment)
        # What no lane has of its own, such as a teacher, is in memory once.
        self._shared = jax.device_put(experiment.constants, self._everywhere)
        self._step_on_one_batch = jax.jit(jax.vmap(step, in_axes=(0, None, None)), donate_argnums=0)
        self._step_on_batches = jax.jit(jax.vmap(step, in_axes=(0, None, 0)), donate_argnums=0)
        self._nll = jax.jit(nll_of_lane)

    def start(self, experiments: Sequence[Experiment]) -> TrainState:
        """See `Lanes`."""
        states = [self._starts.make(experiment) for experiment in experiments]
        return jax.device_put(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), self._by_lane)

    def step(self, state: TrainState, batches: Sequence[np.ndarray]) -> tuple[TrainState, Metrics]:
        """See `Lanes`."""
        if len(batches) == 1:
            return self._step_on_one_batch(state, self._shared, jax.device_put(batches[0], self._everywhere))
        return self._step_on_batches(state, self._shared, jax.device_put(np.stack(batches), self._by_lane))

    def nll(self, state: TrainState, lane: int, batch: np.ndarray) -> jax.Array:
        """See `Lanes`."""
        return self._nll(state, jnp.int32(lane), jax.device_put(batch, self._everywhere))


class _Starts:
    """States before the first step, without `Experiment.constants`; points of the same widths share their program."""

    def __init__(self, experiment: Experiment):
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, _bare(experiment).abstract_state())
        self._places = sharding.variable_shardings(experiment.mesh, {"params": experiment.params})["params"]
        self._compiled: dict[tuple[float, ...], Callable[[Tree, Tree | None, Tree], TrainState]] = {}

    def make(self, experiment: Experiment) -> TrainState:
        widths = tuple(experiment.config.quant.layer_bits)
        if widths not in self._compiled:
            self._compiled[widths] = jax.jit(_bare(experiment).make_state, out_shardings=self._shardings)
        params, ranges = jax.device_put(experiment.params, self._places), range_variables(experiment.ranges)
        state = self._compiled[widths](params, experiment.scales, ranges)
        return dataclasses.replace(
            state, opt_state=with_peak(state.opt_state, experiment.config.optimizer.learning_rate)
        )


def _bare(experiment: Experiment) -> Experiment:
    """Without what is there already, such as a teacher, which a compiled function would hold as a literal."""
    return dataclasses.replace(experiment, constants={})


def _pure_step(experiment: Experiment) -> TrainStep:
    return make_train_step(experiment.objective, experiment.optimizer, experiment.config.train.accumulate)
