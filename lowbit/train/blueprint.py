"""A run before it has weights, data or even devices: what can be compiled and measured of a config alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lowbit.config import ConfigDict
from lowbit.data import TokenDataset, TokenWindows
from lowbit.distill.objectives import TEACHER
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.train import sharding
from lowbit.train.activations import empty_ranges
from lowbit.train.learner import check_length, make_learner, make_plan
from lowbit.train.limits import check_limits
from lowbit.train.setup import Experiment, check_heads, make_objective
from lowbit.train.state import TrainState, Tree
from lowbit.train.step import make_train_step
from lowbit.train.teacher import check_distill, kept_dtype
from lowbit.tree import unflatten


def check_fit(config: ConfigDict, cfg: LlamaConfig, mesh: sharding.AnyMesh) -> None:
    """Refuses what `prepare` would refuse of a config, a model's sizes and a mesh, whose devices need not be there.

    Raises:
      LowbitError: a number out of range, a batch or heads that the mesh does not divide, too long a sequence.
    """
    check_limits(config)
    check_distill(config)
    sharding.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    sharding.check_batch(mesh, config.evaluation.batch_size, 1)
    check_heads(cfg, mesh)
    check_length(config, cfg)


def blueprint(config: ConfigDict, cfg: LlamaConfig, mesh: Mesh, teacher: LlamaConfig | None = None) -> Experiment:
    """Returns the experiment that `prepare` would, with shapes in place of arrays and zeros in place of data.

    `abstract_state`, `make_state` and the objective are those of the real run; of files that the config names, none is
    looked at.

    Args:
      config: as `prepare` takes it.
      cfg: sizes of the model.
      mesh: the devices.
      teacher: sizes of the teacher where `distill.weight` asks for one.

    Raises:
      LowbitError: as `prepare`, of everything that needs neither weights nor files.
    """
    check_fit(config, cfg, mesh)
    plan = make_plan(config)
    learner = make_learner(config, cfg, plan)
    model = learner.model
    if not config.data.attend_across_documents:
        model = model.clone(separator=0)  # any token: which one it is changes no shape
    length = config.train.sequence_length
    return Experiment(
        config=config,
        cfg=cfg,
        rules=plan.rules,
        model=model,
        params=learner.shapes,
        constants={} if teacher is None else {TEACHER: _teacher_shapes(teacher, config.distill.dtype)},
        objective=make_objective(config, model, teacher),
        optimizer=learner.optimizer,
        frozen=learner.frozen,
        mesh=mesh,
        train=TokenDataset(TokenWindows((np.zeros(length + 1, np.uint32),), length), config.train.batch_size),
        valid={},
        byte_lengths=None,
        tokenizer_files={},
        ranges=empty_ranges(plan.rounding, cfg),
    )


def _teacher_shapes(cfg: LlamaConfig, dtype: str) -> Tree:
    shapes = param_shapes(cfg).items()
    return unflatten({path: jax.ShapeDtypeStruct(shape, kept_dtype(path, dtype)) for path, shape in shapes})


def abstract_batch(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of one batch, i32[b t+1]."""
    settings = experiment.config.train
    place = NamedSharding(experiment.mesh, sharding.BATCH)
    return jax.ShapeDtypeStruct((settings.batch_size, settings.sequence_length + 1), jnp.int32, sharding=place)


def lower_step(experiment: Experiment, state: TrainState) -> jax.stages.Lowered:
    """Returns the train step as the loop runs it, lowered for the experiment's mesh.

    Args:
      experiment: on a mesh of devices that are there.
      state: the experiment's `abstract_state`, or arrays.
    """
    step = make_train_step(experiment.objective, experiment.optimizer, experiment.config.train.accumulate)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    compilable: Any = sharding.jit_train_step(step, experiment.mesh, places)
    return compilable.lower(state, abstract_batch(experiment))
