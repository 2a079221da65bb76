"""Learning-rate shapes: pure functions from the step to a share of the peak in [0, 1]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lowbit.errors import ConfigError, nearest

Schedule = Callable[[jax.Array], jax.Array]
"""schedule(step i32[]) -> f32[], the share of the peak learning rate for the step after `step` done steps."""


def _cosine(progress: jax.Array, final: float) -> jax.Array:
    return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _linear(progress: jax.Array, final: float) -> jax.Array:
    return 1.0 - (1.0 - final) * progress


def _constant(progress: jax.Array, final: float) -> jax.Array:
    return jnp.ones_like(progress)


SHAPES: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
}


def stop_after(schedule: Schedule, steps: int) -> Schedule:
    """Returns the schedule, and 0 for every step after the first `steps`."""
    return lambda step: jnp.where(step < steps, schedule(step), 0.0)


def make_schedule(shape: str, steps: int, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Returns a linear warm-up followed by `shape`.

    Args:
      shape: "cosine" or "linear" (from 1 to `final`), or "constant" (1 throughout; `final` must be left at 0).
      steps: length of the run; later steps stay at the end value.
      warmup: share of `steps` in which the rate climbs from 1/n to 1, n = round(warmup * steps).
      final: share of the peak that is left at the end.

    Raises:
      ConfigError: an unknown shape, or a share outside of [0, 1).
    """
    if shape not in SHAPES:
        raise ConfigError(f"unknown schedule {shape!r}", nearest(shape, SHAPES))
    if steps < 1:
        raise ConfigError(f"a schedule over {steps} steps", "train for at least one step")
    for name, share in (("warmup", warmup), ("final", final)):
        if not 0.0 <= share < 1.0:
            raise ConfigError(f"schedule {name} {share} is no share of the run", "give a number in [0, 1)")
    if shape == "constant" and final:
        raise ConfigError(f"a constant schedule cannot end at {final} of its peak", "set final=0, or choose linear")
    climb = round(warmup * steps)

    def schedule(step: jax.Array) -> jax.Array:
        position = step.astype(jnp.float32)
        progress = jnp.clip((position - climb) / max(steps - climb, 1), 0.0, 1.0)
        rising = (position + 1.0) / max(climb, 1)
        return jnp.where(position < climb, rising, SHAPES[shape](progress, final))

    return schedule
