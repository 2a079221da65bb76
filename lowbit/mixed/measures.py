"""The ways to find what a kernel loses, by the names that the command line takes."""

from collections.abc import Callable

from lowbit.errors import AllocationError, nearest
from lowbit.mixed.divergence import divergences
from lowbit.mixed.finished import FinishedRows
from lowbit.mixed.fisher import fisher_losses
from lowbit.mixed.hessian import output_errors
from lowbit.mixed.trial import Progress, Sensitivities, Trial
from lowbit.models.layerwise import LayerSource

Measure = Callable[[LayerSource, Trial, FinishedRows | None, Progress | None], Sensitivities]
"""`(source, trial, finished layers or None, progress or None) -> Sensitivities`."""

MEASURES: dict[str, Measure] = {
    # Takes no longer than its layers do by themselves: nothing of it is worth keeping.
    "gradient": lambda source, trial, _, progress: fisher_losses(source, trial, progress=progress),
    "hessian": lambda source, trial, finished, progress: output_errors(
        source, trial, finished=finished, progress=progress
    ),
    "kl": lambda source, trial, finished, progress: divergences(source, trial, finished=finished, progress=progress),
}
"""Losses of gradient and kl are in nats/token, those of hessian shares of the outputs' power."""

SEQUENCES = {"gradient": 256, "hessian": 64, "kl": 64}
"""Of calibration, where nobody says how many: a gradient is one sample a sequence, the others are means over tokens."""


def measure_by_name(name: str) -> Measure:
    """Returns the named measure; raises AllocationError where there is none."""
    if name not in MEASURES:
        raise AllocationError(f"unknown measure {name!r} of what a kernel loses", nearest(name, MEASURES))
    return MEASURES[name]
