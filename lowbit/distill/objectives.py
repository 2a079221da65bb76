"""Objectives with a teacher, for `lowbit.train`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.distill.losses import Outputs, distillation
from lowbit.errors import ConfigError

Tree = dict[str, Any]
Objective = Callable[[Tree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""objective(variables, batch i32[b t+1]) -> (loss, metrics), as `lowbit.train.step.make_train_step` takes it."""

TEACHER = "teacher"
"""The collection, among a state's constants, that holds the teacher's parameters."""


def distill_from(
    teacher: nn.Module, student: nn.Module, weight: float, temperature: float = 1.0, chunks: int = 8
) -> Objective:
    """Returns the objective `(1-weight) * CE + weight * T^2 * KL(teacher || student)`, nats per token.

    The teacher runs beside the student, without gradient, on parameters in `constants[TEACHER]`.

    Args:
      teacher: its module, as trained: usually the float model that the student started from.
      student: the quantized model.
      weight: share of the divergence; 1 is pure distillation.
      temperature: of both distributions in the divergence.
      chunks: see `losses.distillation`.

    Raises:
      ConfigError: a weight outside of 0 to 1, or a temperature that is not positive.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"a distillation weight of {weight}", "choose a share from 0 to 1")
    if not temperature > 0:
        raise ConfigError(f"a distillation temperature of {temperature}", "choose a positive one")

    def objective(variables: Tree, batch: Int32[Array, "b length"]) -> tuple[jax.Array, dict[str, jax.Array]]:
        own = {name: tree for name, tree in variables.items() if name != TEACHER}
        taught = teacher.apply({"params": variables[TEACHER]}, batch[:, :-1], method="hidden_and_head")
        taught = jax.lax.stop_gradient(Outputs(*taught))
        hidden, head = student.apply(own, batch[:, :-1], method="hidden_and_head")
        targets = batch[:, 1:]
        with jax.named_scope("loss"):  # a name in profiles
            loss, cross_entropy = distillation(hidden, head, taught, targets, weight, temperature, chunks)
        return loss, {"tokens": jnp.float32(targets.size), "cross_entropy": cross_entropy}

    return objective
