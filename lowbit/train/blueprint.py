"""A run before it has weights, data or even devices: what can be compiled and measured of a config alone."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.data import TokenDataset, TokenWindows
from lowbit.errors import ConfigError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.train import sharding
from lowbit.train.limits import check_limits
from lowbit.train.objectives import next_token
from lowbit.train.optimizers import adamw, frozen_paths
from lowbit.train.quantization import quantization_rules
from lowbit.train.schedules import make_schedule
from lowbit.train.setup import Experiment, make_model, parameter_groups
from lowbit.train.state import TrainState
from lowbit.train.step import make_train_step
from lowbit.tree import init_state, resolve, unflatten


def blueprint(config: ConfigDict, cfg: LlamaConfig, mesh: Any) -> Experiment:
    """Returns the experiment that `prepare` would, with shapes in place of parameters and zeros in place of data.

    `abstract_state`, `make_state` and the objective are those of the real run. Files that the config names are not
    looked at.

    Args:
      config: as `prepare` takes it.
      cfg: sizes of the model, which the config's source is not asked for.
      mesh: of devices, or abstract.

    Raises:
      LowbitError: what `prepare` would refuse, of everything that needs neither weights nor files.
    """
    check_limits(config)
    schedule = make_schedule(steps=configs.steps(config), **config.schedule.to_dict())
    sharding.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    rules = tuple(quantization_rules(config.quant))
    if config.train.sequence_length > cfg.max_positions:
        raise ConfigError(
            f"train.sequence_length={config.train.sequence_length} exceeds the model's {cfg.max_positions} positions",
            "shorten the sequences",
        )
    model = make_model(config, cfg, rules)
    shapes = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in param_shapes(cfg).items()})
    resolve(rules, shapes)
    groups = parameter_groups(
        config.optimizer,
        {"params": shapes, "quant": jax.eval_shape(functools.partial(init_state, rules), shapes)["quant"]},
    )
    settings = config.optimizer
    optimizer = adamw(
        schedule,
        settings.learning_rate,
        groups,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        clip_norm=None if math.isinf(settings.clip_norm) else settings.clip_norm,
    )
    length = config.train.sequence_length
    return Experiment(
        config=config,
        cfg=cfg,
        rules=rules,
        model=model,
        params=shapes,
        constants={},
        objective=next_token(model, config.train.loss_chunks),
        optimizer=optimizer,
        frozen=frozen_paths(groups),
        mesh=mesh,
        train=TokenDataset(TokenWindows((np.zeros(length + 1, np.uint32),), length), config.train.batch_size),
        valid={},
        byte_lengths=None,
        tokenizer_files={},
    )


def abstract_batch(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of one batch, i32[b t+1]."""
    settings = experiment.config.train
    place = jax.sharding.NamedSharding(experiment.mesh, sharding.BATCH)
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
