"""What is tried: every kernel by itself, rounded by one method to each of a few widths, on the float model's inputs."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lowbit.errors import AllocationError, QuantizerError
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.models.layerwise import LayerSource
from lowbit.ptq import Calibration, Plan, Target
from lowbit.ptq.calibration import Devices, embedded
from lowbit.ptq.gptq import check_valid
from lowbit.ptq.moments import Moments, advance, moments
from lowbit.train.quantization import EMBEDDING
from lowbit.tree import unflatten

Rows = dict[str, list[float]]
"""Of one layer: by the kernel's path, what it loses at each width."""

Progress = Callable[[int, int], None]
"""Called with how many steps are done, and of how many."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Everything that decides what a kernel becomes when it is tried.

    Attributes:
      plan: method, grid, granularity, options and calibration; its width does not count.
      widths: to try, in ascending order.
    """

    plan: Plan
    widths: tuple[float, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """What kernels are rounded to, one a width."""
        return tuple(self.plan.target.at(bits) for bits in self.widths)

    @property
    def calibration(self) -> Calibration:
        """The sequences on which losses are found."""
        assert self.plan.calibration is not None
        return self.plan.calibration

    def check(self, cfg: LlamaConfig) -> None:
        """Refuses what cannot be tried, before any work.

        Raises:
          AllocationError: fewer than two widths or one of them twice, no data, or a method that makes several kernels
            together.
          QuantizerError: see `Plan.check`, for every width; a grid that has other levels in every kernel.
          DataError: see `Calibration.check`.
        """
        if len(self.widths) < 2 or tuple(sorted(set(self.widths))) != self.widths:
            raise AllocationError(
                f"widths to choose from are {', '.join(f'{bits:g}' for bits in self.widths)}",
                "give two or more, each once",
            )
        if self.plan.calibration is None:
            raise AllocationError("losses are found on text, and there is none", "give calibration data")
        method = self.plan.method
        if method.fold is not None or method.learn is not None:
            raise AllocationError(
                f"{method.name} makes several kernels together, so none can be tried by itself",
                "allocate with rtn or gptq, and quantize to those widths by any method",
            )
        for target in self.targets:
            if target.quantizer is None:
                raise QuantizerError(
                    f"the grid {target.grid!r} has levels of its own in every kernel, and no size that is known before",
                    "choose another grid, such as integer or paretoq",
                )
            dataclasses.replace(self.plan, target=target).check(cfg)

    def roundings(self, name: str, path: str, w: jax.Array, known: Moments | None) -> list[jax.Array]:
        """Returns what the kernel `w [k n]` becomes, one array a width.

        Raises:
          QuantizerError: a Hessian that cannot be factored; `name` says whose.
        """
        found = []
        for target in self.targets:
            rounded = self.plan.method.round(path, w, known, target, self.plan.options)
            if rounded.valid is not None:
                check_valid(rounded.valid, name, self.plan.options)
            found.append(rounded.w_hat)
        return found

    def record(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        said = self.plan.record()
        kept = ("method", "grid", "granularity", "range", "options", "calibration")
        return {**{key: said[key] for key in kept}, "candidates": list(self.widths)}


def kernel_weights(cfg: LlamaConfig) -> int:
    """Returns how many weights the kernels of all layers have."""
    shapes = param_shapes(cfg)
    return sum(math.prod(shapes[LAYER_PREFIX + path]) for stage in LINEAR_STAGES for path in stage)


@dataclasses.dataclass(frozen=True, eq=False)
class FloatLayer:
    """One layer of the float model and what it reads.

    Attributes:
      cfg: the model's sizes.
      index: of the layer.
      flat: its parameters by path in the layer, on the first device.
      hidden: its inputs f32[batches b t d], the rows of a batch over all devices.
      devices: where.
    """

    cfg: LlamaConfig
    index: int
    flat: dict[str, jax.Array]
    hidden: jax.Array
    devices: Devices

    def kernels(self, with_moments: bool) -> Iterator[tuple[str, str, jax.Array, Moments | None]]:
        """Yields a name for messages, path, `w [k n]` and moments of the inputs of each kernel; None if not asked."""
        for stage in LINEAR_STAGES:
            known = None
            if with_moments:
                block = jax.device_put(unflatten(self.flat), self.devices.everywhere)
                known = jax.device_put(moments(self.cfg, stage[0], block, self.hidden), self.devices.first)
            for path in stage:
                yield f"{path} of layer {self.index}", path, self.flat[path], known


def float_layers(
    source: LayerSource, calibration: Calibration, devices: Sequence[jax.Device] | None = None
) -> Iterator[FloatLayer]:
    """Yields the layers one after another, one in memory at a time; the arrays of one are gone when the next is asked.

    Args:
      source: the float model.
      calibration: the sequences that run through it.
      devices: over which their rows are spread; None takes all of this process.
    """
    places = Devices.of(jax.local_devices() if devices is None else devices)
    hidden = embedded(source.outside(EMBEDDING), calibration, places)
    for index in range(source.cfg.num_layers):
        flat = jax.device_put(source.layer(index), places.first)
        yield FloatLayer(source.cfg, index, flat, hidden, places)
        if index + 1 < source.cfg.num_layers:
            hidden = advance(source.cfg, jax.device_put(unflatten(flat), places.everywhere), hidden)


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivities:
    """What every kernel loses at every width.

    Attributes:
      by: how it was found.
      widths: in ascending order.
      losses: f64[layers widths] by the kernel's path in a layer; zero or more.
    """

    by: str
    widths: tuple[float, ...]
    losses: dict[str, NDArray[np.float64]]

    @classmethod
    def of_rows(cls, by: str, widths: tuple[float, ...], layers: Sequence[Rows]) -> "Sensitivities":
        """Returns them from the rows of each layer.

        Raises:
          AllocationError: a loss that is no number: the model, or what a kernel was rounded to, leaves the floats.
        """
        losses = {path: np.asarray([rows[path] for rows in layers], np.float64) for path in layers[0]}
        for path, found in losses.items():
            if not np.isfinite(found).all():
                layer, width = (int(i) for i in np.argwhere(~np.isfinite(found))[0])
                raise AllocationError(
                    f"{path} of layer {layer} at {widths[width]:g} bits loses {found[layer, width]}",
                    "look whether the model is a sound one: its outputs on this text are no numbers",
                )
        return cls(by, widths, losses)
