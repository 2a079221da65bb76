"""Eight bits for what kernels read: a scale for each token as it comes, or one for all from calibration.

A static range is one number c for the inputs of a kernel in a layer: they are rounded to `c/127` times -127 .. 127, and
what lies beyond is clipped. It is found on what the quantized layers before give, in float, and on the quantized layer
itself: with the scales that a fold has put into its norms.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from lowbit.errors import QuantizerError, nearest
from lowbit.llama import LAYER_PREFIX, LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig
from lowbit.models.blockwise import LINEAR_STAGES, linear_inputs
from lowbit.numerics.activations import Range, range_state
from lowbit.ptq.moments import Hidden
from lowbit.ptq.programs import jit

BITS = 8

_BY_TOKEN = InputRounding(BITS)
_STATIC = InputRounding(BITS, granularity="tensor", range="static")

ACTIVATIONS: dict[str, tuple[InputRounding, InputRounding] | None] = {
    "float": None,
    "int8-dynamic": (_BY_TOKEN, _BY_TOKEN),
    "int8-static": (_STATIC, _STATIC),
    "int8-mixed": (_STATIC, _BY_TOKEN),
}
"""By the names that the command line takes, how inputs are rounded: of all linear layers but `DOWN`, and of `DOWN`."""

DOWN = "layers/mlp/down_proj"
"""What reads single tokens of huge magnitude in a gated MLP: no static range holds both them and the others."""

PERCENT = 99.99
"""Of the magnitudes, how many the range "percentile" holds."""

MOMENTUM = 0.9
"""Of the range "moving": what is left of the average at the next batch."""

PER_OCTAVE, OCTAVES = 64, 32
"""Bins of a histogram of magnitudes: so many for each factor of 2 below the largest; what is smaller counts as 0."""

TRIED_OCTAVES = 10
"""How far below the largest magnitude the range "mse" looks, in steps of an eighth of an octave."""


@dataclasses.dataclass(frozen=True)
class Activations:
    """How the inputs of all linear layers are rounded, and what keys and values are held as.

    Attributes:
      name: of `ACTIVATIONS`.
      range: of `RANGES`: how a static range is found; not read where there is none.
      cache: of keys and values; None leaves them float. Nothing is calibrated for it.

    Raises:
      QuantizerError: an unknown name or range.
    """

    name: str
    range: str = "max"
    cache: CacheKind | None = None

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise QuantizerError(f"unknown activations {self.name!r}", nearest(self.name, ACTIVATIONS))
        if self.range not in RANGES:
            raise QuantizerError(f"unknown range {self.range!r} of activations", nearest(self.range, RANGES))

    @property
    def is_static(self) -> bool:
        """Whether some ranges come from calibration."""
        return self.rounding().is_static

    def section(self) -> dict[str, Any]:
        """Returns what the section `activations` of a config says of it."""
        held = {} if self.cache is None else {f"kv_{name}": value for name, value in self.cache._asdict().items()}
        inputs = ACTIVATIONS[self.name]
        if inputs is None:
            return held
        common, down = (one._asdict() for one in inputs)
        changed = {key: value for key, value in down.items() if value != common[key]}
        return {**common, "overrides": ((DOWN, changed),) if changed else (), **held}

    def rounding(self) -> ActivationRounding:
        """Returns it as models and files have it."""
        inputs = ACTIVATIONS[self.name]
        if inputs is None:
            return ActivationRounding((), self.cache)
        common, down = inputs
        return ActivationRounding(tuple((path, down if path == DOWN else common) for path in LINEARS), self.cache)


class Seen(NamedTuple):
    """Magnitudes of the inputs of a kernel over calibration.

    Attributes:
      largest: of each batch, f32[batches].
      counts: i64[OCTAVES * PER_OCTAVE + 1], how many lie in each bin; the last holds the largest, the first 0.
    """

    largest: NDArray[np.float32]
    counts: NDArray[np.int64]

    def values(self) -> NDArray[np.float64]:
        """Returns the magnitude in the (geometric) middle of each bin."""
        octaves = (np.arange(len(self.counts)) - (len(self.counts) - 1)) / PER_OCTAVE
        values: NDArray[np.float64] = float(self.largest.max()) * 2.0**octaves
        values[0] = 0.0
        return values


def whole(seen: Seen) -> float:
    """The largest magnitude: nothing is clipped."""
    return float(seen.largest.max())


def moving_average(seen: Seen) -> float:
    """The largest magnitude of a batch, averaged over batches with `MOMENTUM` (arXiv 1712.05877, section 3)."""
    return float(functools.reduce(lambda kept, new: MOMENTUM * kept + (1 - MOMENTUM) * new, map(float, seen.largest)))


def percentile(seen: Seen) -> float:
    """The least magnitude that `PERCENT` of all do not exceed, up to the width of a bin (1.1 %)."""
    below = np.cumsum(seen.counts)
    return float(seen.values()[np.searchsorted(below, PERCENT / 100 * below[-1])])


def least_squares(seen: Seen) -> float:
    """The range of least squared error, of rounding and of clipping together."""
    values, levels = seen.values(), 2 ** (BITS - 1) - 1
    tried = whole(seen) * 2.0 ** (-np.arange(8 * TRIED_OCTAVES) / 8)

    def error(reach: float) -> float:
        step = reach / levels
        clipped = np.minimum(values, reach)
        # A bin is narrower than a step near zero alone; farther out, a step's mean squared error stands for it.
        near = np.square(clipped - step * np.rint(clipped / step))
        inside = np.where(values < 8 * step, near, step**2 / 12)
        return float(seen.counts @ np.where(values > reach, np.square(values - reach), inside))

    return float(tried[np.argmin([error(reach) for reach in tried])])


RANGES: dict[str, Callable[[Seen], float]] = {
    "max": whole,
    "mse": least_squares,
    "percentile": percentile,
    "moving": moving_average,
}
"""How the range of a tensor is found, the usual one first: what clips loses the few large numbers that the model
leans on."""


def input_states(
    cfg: LlamaConfig, block: Any, hidden: Hidden, activations: Activations
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the calibrated state of those inputs of a layer that have a static range, `{"scale": f32[1 1]}` by path.

    Args:
      cfg: the model's sizes.
      block: the quantized layer.
      hidden: its inputs.
      activations: which inputs, and how their ranges are found.

    Raises:
      QuantizerError: inputs that are not finite.
    """
    largest = _largest(cfg, block, hidden)
    counts = _counts(cfg, block, hidden, {path: jnp.max(each) for path, each in largest.items()})
    kinds = dict(activations.rounding().inputs)
    states: dict[str, dict[str, np.ndarray]] = {}
    for stage in LINEAR_STAGES:
        seen = Seen(np.asarray(largest[stage[0]]), np.asarray(counts[stage[0]]).astype(np.int64).sum(axis=0))
        if not np.isfinite(seen.largest).all():
            raise QuantizerError(
                f"the inputs of {stage[0]} are not finite", "the weights are too coarse to compute with: take more bits"
            )
        reach = jnp.full((1, 1), RANGES[activations.range](seen), jnp.float32)
        state = range_state(Range(-reach, reach), BITS, symmetric=True)
        for path in stage:
            if kinds[f"{LAYER_PREFIX}{path.removesuffix('/kernel')}"].range == "static":
                states[path] = {key: np.asarray(leaf) for key, leaf in state.items()}
    return states


@functools.partial(jit, static_argnames=("cfg",))
def _largest(cfg: LlamaConfig, block: Any, hidden: Hidden) -> dict[str, Float[Array, " batches"]]:
    def of_batch(x: Array) -> dict[str, Array]:
        inputs = linear_inputs(cfg, block, x)
        return {stage[0]: jnp.max(jnp.abs(inputs[stage[0]])) for stage in LINEAR_STAGES}

    return jax.lax.map(of_batch, hidden)


@functools.partial(jit, static_argnames=("cfg",))
def _counts(cfg: LlamaConfig, block: Any, hidden: Hidden, largest: dict[str, Float[Array, ""]]) -> dict[str, Array]:
    """Counts u32[batches bins]; the sum over batches may exceed 32 bits."""
    last = OCTAVES * PER_OCTAVE

    def of_batch(x: Array) -> dict[str, Array]:
        inputs = linear_inputs(cfg, block, x)
        found = {}
        for stage in LINEAR_STAGES:
            magnitude = jnp.abs(inputs[stage[0]]).reshape(-1)
            octaves = jnp.log2(jnp.maximum(magnitude / jnp.maximum(largest[stage[0]], 1e-30), 2.0 ** -(OCTAVES + 1)))
            index = jnp.clip(jnp.round(last + octaves * PER_OCTAVE), 0, last).astype(jnp.int32)
            found[stage[0]] = jnp.zeros(last + 1, jnp.uint32).at[index].add(1)
        return found

    return jax.lax.map(of_batch, hidden)
