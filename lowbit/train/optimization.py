"""From the sections `optimizer` and `schedule` of a config to parameter groups and the optimizer that reads them."""

import math
import re
from collections.abc import Collection, Mapping

import optax

from lowbit import config as configs
from lowbit.config import ConfigDict, base, choose
from lowbit.errors import ConfigError
from lowbit.train.channels import CHOICES, only_chosen_channels
from lowbit.train.optimizers import Group, adamw, assign_groups, default_groups, leaf_paths, muon
from lowbit.train.schedules import SHAPES, Schedule, make_schedule, stop_after
from lowbit.train.state import Tree
from lowbit.tree import Rule, lookup

OPTIMIZERS = {"adamw": adamw, "muon": muon}
"""By the name that a config gives."""


def check_optimizer(settings: ConfigDict) -> None:
    """Raises ConfigError for a name in `config.optimizer` that stands for nothing, or a choice among all channels.

    Numbers have their limits.
    """
    choose("optimizer", settings.name, OPTIMIZERS)
    choose("optimizer.channel_choice", settings.channel_choice, CHOICES)
    if settings.channel_share == 1.0 and settings.channel_choice != base().optimizer.channel_choice:
        raise ConfigError(
            f"optimizer.channel_choice={settings.channel_choice!r} is set, and all channels learn",
            "set optimizer.channel_share, or leave optimizer.channel_choice out",
        )
    choose("optimizer.scale_schedule", settings.scale_schedule, {"same": None, **SHAPES})


def make_scale_schedule(config: ConfigDict, schedule: Schedule) -> Schedule | None:
    """Returns the schedule of quantizer scales, with the run's warm-up and end; None where it is the run's own.

    Raises:
      ConfigError: an unknown shape.
    """
    steps, settings = configs.steps(config), config.optimizer
    own = schedule
    if settings.scale_schedule != "same":
        final = 0.0 if settings.scale_schedule == "constant" else config.schedule.final
        own = make_schedule(settings.scale_schedule, steps, config.schedule.warmup, final)
    if settings.scale_until < 1.0:
        own = stop_after(own, round(settings.scale_until * steps))
    return None if own is schedule else own


def parameter_groups(
    settings: ConfigDict, shapes: Tree, scale_schedule: Schedule | None = None, still: Collection[str] = ()
) -> dict[str, Group]:
    """Returns the optimizer group of each path of {"params", "quant"}, from `config.optimizer`.

    Args:
      settings: the section.
      shapes: of {"params", "quant"}.
      scale_schedule: of "quant"; None follows the run's own.
      still: parameters that no gradient reaches, whatever the section says; paths without "params/".

    Raises:
      RuleError: a pattern of `frozen` that nothing matches.
      ConfigError: a negative or infinite factor, or a share of channels where no kernel learns.
    """
    frozen = [Rule(pattern, Group(frozen=True)) for pattern in settings.frozen]
    taken = [*(Rule(rule.pattern, True) for rule in frozen), Rule(".*", False)]
    masters = [path for path in sorted(f"params/{path}" for path in still) if not lookup(taken, path)]
    frozen += [Rule(re.escape(path), Group(frozen=True)) for path in masters]
    usual = default_groups(
        leaf_paths(shapes),
        settings.weight_decay,
        settings.scale_learning_rate,
        after=[rule.pattern for rule in frozen],
        orthogonal=settings.name == "muon",
        scale_schedule=scale_schedule,
        float_learning_rate=settings.float_learning_rate,
        partial=settings.channel_share < 1.0,
    )
    groups = assign_groups([*frozen, *usual], shapes)
    if settings.channel_share < 1.0 and not any(group.partial for group in groups.values()):
        raise ConfigError(
            f"optimizer.channel_share={settings.channel_share:g}, and no kernel of the layers learns",
            "leave optimizer.channel_share out, or let kernels learn: by optimizer.frozen, and codes that move",
        )
    return groups


def make_optimizer(
    settings: ConfigDict, schedule: Schedule, groups: Mapping[str, Group]
) -> optax.GradientTransformation:
    """Returns what `config.optimizer` describes, for parameters in these groups.

    Raises:
      ConfigError: an unknown name, or a number out of range.
    """
    make = choose("optimizer", settings.name, OPTIMIZERS)
    own = {"momentum": settings.momentum} if make is muon else {}
    optimizer = make(
        schedule,
        settings.learning_rate,
        groups,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        clip_norm=None if math.isinf(settings.clip_norm) else settings.clip_norm,
        **own,
    )
    partial = [path for path, group in groups.items() if group.partial and not group.frozen]
    if not partial:
        return optimizer
    choice = choose("optimizer.channel_choice", settings.channel_choice, CHOICES)
    return only_chosen_channels(optimizer, partial, choice, settings.channel_share, settings.channel_every_steps)
