"""Objectives with a teacher, for `lowbit.train`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.distill.losses import DIVERGENCES, Outputs, distillation
from lowbit.distill.matching import Insides, hidden_distance, outputs_and_insides, relation_divergence
from lowbit.errors import ConfigError, ModelError, nearest

Tree = dict[str, Any]
Objective = Callable[[Tree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""objective(variables, batch i32[b t+1]) -> (loss, metrics), as `lowbit.train.step.make_train_step` takes it."""

TEACHER = "teacher"
"""The collection, among a state's constants, that holds the teacher's parameters."""

PARTS = ("cross_entropy", "divergence", "hidden_distance", "attention_divergence")
"""Metrics that say what a loss is made of, each without its weight."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """What a student learns from a teacher:

        (1-weight) CE + weight T^2 D + hidden_weight H + attention_weight A, all per token.

    Attributes:
      weight: share of the divergence D between the distributions of the next token; 1 leaves no cross entropy.
      temperature: T, of both distributions in D.
      divergence: which D, one of `losses.DIVERGENCES`.
      hidden_weight: of `matching.hidden_distance`.
      attention_weight: of `matching.relation_divergence`, the mean over queries, keys and values.
      attention_layer: whose these are; -1 is the last.

    Raises:
      ConfigError: a number out of its range, or an unknown divergence.
    """

    weight: float
    temperature: float = 1.0
    divergence: str = "forward"
    hidden_weight: float = 0.0
    attention_weight: float = 0.0
    attention_layer: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"a distillation weight of {self.weight}", "choose a share from 0 to 1")
        if not self.temperature > 0:
            raise ConfigError(f"a distillation temperature of {self.temperature}", "choose a positive one")
        if self.divergence not in DIVERGENCES:
            raise ConfigError(f"unknown divergence {self.divergence!r}", nearest(self.divergence, DIVERGENCES))
        if not (self.hidden_weight >= 0 and self.attention_weight >= 0):
            raise ConfigError(
                f"weights of {self.hidden_weight} and {self.attention_weight} on the insides", "choose 0 or more"
            )


def distill_from(
    teacher: nn.Module, student: nn.Module, weight: float, temperature: float = 1.0, chunks: int = 8
) -> Objective:
    """Returns the objective `(1-weight) * CE + weight * T^2 * KL(teacher || student)`, nats per token.

    Args and raises: as `distill`, and `Mix`.
    """
    return distill(teacher, student, Mix(weight, temperature), chunks)


def distill(teacher: Any, student: Any, mix: Mix, chunks: int = 8) -> Objective:
    """Returns the objective that `mix` describes.

    The teacher runs beside the student, without gradient, on parameters in `constants[TEACHER]`.

    Args:
      teacher: its `Transformer`, as trained: usually the float model that the student started from.
      student: the quantized model.
      mix: the losses and their weights.
      chunks: see `losses.distillation`.

    Raises:
      ModelError: hidden states or attention are to be matched and have other shapes in the two models.
      ConfigError: there is no such layer.
    """
    check_insides(mix, teacher.cfg, student.cfg)
    layer = mix.attention_layer if mix.attention_weight else None
    states = bool(mix.hidden_weight)

    def objective(variables: Tree, batch: Int32[Array, "b length"]) -> tuple[jax.Array, dict[str, jax.Array]]:
        own = {name: tree for name, tree in variables.items() if name != TEACHER}
        tokens, targets = batch[:, :-1], batch[:, 1:]
        wise: tuple[Outputs, Insides] = jax.lax.stop_gradient(
            outputs_and_insides(teacher, {"params": variables[TEACHER]}, tokens, states=states, layer=layer)
        )
        outputs, insides = outputs_and_insides(student, own, tokens, states=states, layer=layer)
        with jax.named_scope("loss"):  # a name in profiles
            loss, cross_entropy, divergence = distillation(
                outputs.hidden, outputs.head, wise[0], targets, mix.weight, mix.temperature, chunks, mix.divergence
            )
            parts = {"cross_entropy": cross_entropy, "divergence": divergence}
            if states:
                parts["hidden_distance"] = hidden_distance(insides.states, wise[1].states)
                loss += mix.hidden_weight * parts["hidden_distance"]
            if layer is not None:
                pairs = list(zip(insides.projections, wise[1].projections, strict=True))
                apart = sum(relation_divergence(ours, theirs, chunks) for ours, theirs in pairs)
                parts["attention_divergence"] = jnp.asarray(apart / len(pairs))
                loss += mix.attention_weight * parts["attention_divergence"]
        return loss, {"tokens": jnp.float32(targets.size), **parts}

    return objective


def check_insides(mix: Mix, teacher: Any, student: Any) -> None:
    """Raises as `distill`, from the sizes (`LlamaConfig`) of both models."""
    if mix.hidden_weight and (teacher.num_layers, teacher.hidden_size) != (student.num_layers, student.hidden_size):
        raise ModelError(
            f"hidden states of the teacher, {teacher.num_layers} layers of {teacher.hidden_size}, and of the student, "
            f"{student.num_layers} of {student.hidden_size}, are not of one shape",
            "choose a teacher of the student's sizes, or set distill.hidden_weight=0",
        )
    if not mix.attention_weight:
        return
    heads = (teacher.num_heads, teacher.num_kv_heads), (student.num_heads, student.num_kv_heads)
    if heads[0] != heads[1]:
        raise ModelError(
            f"the teacher has {heads[0]} heads (queries, keys), the student {heads[1]}",
            "choose a teacher with the student's heads, or set distill.attention_weight=0",
        )
    for cfg in (teacher, student):
        if not -cfg.num_layers <= mix.attention_layer < cfg.num_layers:
            raise ConfigError(
                f"distill.attention_layer={mix.attention_layer} of {cfg.num_layers} layers",
                f"give a number from {-cfg.num_layers} to {cfg.num_layers - 1}",
            )
