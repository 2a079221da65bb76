"""From a config, and then a model's sizes, to what learns: rules, model, optimizer. Neither weights nor files."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.errors import ConfigError, nearest
from lowbit.linen import quantize
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, LlamaConfig, param_shapes
from lowbit.models import Transformer
from lowbit.models.activations import rounding_hooks
from lowbit.models.attention import resolve_attention
from lowbit.models.layers import untransformed
from lowbit.models.transformer import RematPolicy
from lowbit.train.activations import activation_rounding
from lowbit.train.adapters import model_rules
from lowbit.train.limits import check_limits
from lowbit.train.optimization import check_optimizer, make_optimizer, make_scale_schedule, parameter_groups
from lowbit.train.optimizers import frozen_paths
from lowbit.train.quantization import fixed_codes
from lowbit.train.schedules import Schedule, make_schedule
from lowbit.train.state import Tree
from lowbit.tree import Rule, init_state, unflatten


class Plan(NamedTuple):
    """What a config says before anything is known of the model.

    Attributes:
      schedule: share of the peak learning rate, by step.
      scale_schedule: that of quantizer scales; None for the same.
      rules: which parameter has which quantizer.
      rounding: how activations are rounded.
    """

    schedule: Schedule
    scale_schedule: Schedule | None
    rules: tuple[Rule[Any], ...]
    rounding: ActivationRounding


def make_plan(config: ConfigDict) -> Plan:
    """Returns the plan of a config.

    Raises:
      LowbitError: a number out of range, a name that stands for nothing.
    """
    check_limits(config)
    check_optimizer(config.optimizer)
    schedule = make_schedule(steps=configs.steps(config), **config.schedule.to_dict())
    rules, rounding = tuple(model_rules(config)), activation_rounding(config.activations)
    return Plan(schedule, make_scale_schedule(config, schedule), rules, rounding)


class Learner(NamedTuple):
    """A plan for a model of known sizes.

    Attributes:
      shapes: of the float masters, f32.
      model: quantized, apply-only, over the whole window.
      optimizer: over what is not frozen.
      frozen: paths that stay as they start.
    """

    shapes: Tree
    model: Transformer
    optimizer: optax.GradientTransformation
    frozen: frozenset[str]


def make_learner(config: ConfigDict, cfg: LlamaConfig, plan: Plan) -> Learner:
    """Returns what learns, from a model's sizes alone.

    Raises:
      LowbitError: rules or patterns that do not fit the model's parameters, an unknown dtype, nothing left to train.
    """
    model = make_model(config, cfg, plan.rules, plan.rounding)
    shapes = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in param_shapes(cfg).items()})
    still = fixed_codes(plan.rules, shapes)
    groups = parameter_groups(
        config.optimizer,
        {"params": shapes, "quant": jax.eval_shape(functools.partial(init_state, plan.rules), shapes)["quant"]},
        plan.scale_schedule,
        still,
    )
    optimizer = make_optimizer(config.optimizer, plan.schedule, groups)
    return Learner(shapes, model, optimizer, frozen_paths(groups))


def check_length(config: ConfigDict, cfg: LlamaConfig) -> None:
    """Raises ConfigError for sequences longer than the model's positions."""
    if config.train.sequence_length > cfg.max_positions:
        raise ConfigError(
            f"train.sequence_length={config.train.sequence_length} exceeds the model's {cfg.max_positions} positions",
            "shorten the sequences",
        )


def check_program(config: ConfigDict, cfg: LlamaConfig) -> None:
    """Refuses what would otherwise be found when the first step is compiled, in a run folder that is there by then.

    Raises:
      ConfigError: an unknown `model.remat`.
      ModelError: an unknown `model.attention`, or one that cannot run on these devices.
    """
    settings = config.model
    policies = get_args(RematPolicy)
    if settings.remat not in policies:
        raise ConfigError(f"unknown model.remat {settings.remat!r}", nearest(settings.remat, policies))
    resolve_attention(settings.attention, settings.compute_dtype, cfg.head_dim)


def make_model(
    config: ConfigDict,
    cfg: LlamaConfig,
    rules: Sequence[Rule[Any]] | None,
    rounding: ActivationRounding = FLOAT_ACTIVATIONS,
) -> Transformer:
    """Returns the decoder with `rules` inside, or float parameters for None, and with `rounding` of activations."""
    settings = config.model
    dtypes = ("float32", "bfloat16", "float16")
    if settings.compute_dtype not in dtypes:
        raise ConfigError(
            f"unknown model.compute_dtype {settings.compute_dtype!r}", nearest(settings.compute_dtype, dtypes)
        )
    transform = untransformed if rules is None else functools.partial(_quantized, rules)
    return Transformer(
        cfg,
        jnp.dtype(settings.compute_dtype),
        remat=settings.remat,
        attention=settings.attention,
        transform=transform,
        hooks=rounding_hooks(rounding),
    )


def _quantized(rules: Sequence[Rule[Any]], module_cls: Any, prefix: str) -> Any:
    return quantize(module_cls, rules, prefix)
