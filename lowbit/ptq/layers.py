"""What is left of a layer once it is quantized, and where finished layers wait for the others."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.atomic import replacing, write_atomically
from lowbit.errors import RunFolderError
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.numerics.quantizers.codebook import codebook
from lowbit.ptq.programs import jit
from lowbit.ptq.target import SCALE_DTYPE, Target


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedKernel:
    """One kernel of one layer.

    Attributes:
      state: of the quantizer.
      levels: where the kernel has levels of its own: their name and values; None where it has the target's.
      bits: bits/weight where no quantizer holds the kernel; None where one does.
      error: squared error relative to the square of the output, on the calibration inputs; of the weights, where the
        method saw no data.
      width: of its codes, where kernels differ in it; None where it has the target's.
    """

    state: dict[str, np.ndarray]
    levels: tuple[str, tuple[float, ...]] | None
    bits: float | None
    error: float
    width: float | None = None

    def quantizer(self, target: Target) -> Quantizer | None:
        """Returns what rounds the masters to the kernel; None where no grid does."""
        if self.bits is not None:
            return None
        if self.width is not None:
            target = target.at(self.width)
        return target.quantizer if self.levels is None else codebook(*self.levels, target.granularity, SCALE_DTYPE)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """One layer.

    Attributes:
      leaves: every parameter by its path in the layer, f32; kernels as masters.
      kernels: what was quantized, by path.
      inputs: calibrated state of the inputs of kernels, by the kernel's path; {} where none is calibrated.
    """

    leaves: dict[str, np.ndarray]
    kernels: dict[str, QuantizedKernel]
    inputs: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def decoded(self, target: Target) -> dict[str, Any]:
        """Returns the parameters that the layer computes with."""
        flat: dict[str, Any] = dict(self.leaves)
        for path, kernel in self.kernels.items():
            quantizer = kernel.quantizer(target)
            if quantizer is not None:
                state = {key: jnp.asarray(leaf) for key, leaf in kernel.state.items()}
                # Levels of their own in every kernel would make a program for each.
                rounded = _rounded if kernel.levels is None else _fake
                flat[path] = rounded(quantizer, jnp.asarray(flat[path]), state)
        return flat


def _fake(quantizer: Quantizer, w: jax.Array, state: State) -> jax.Array:
    return quantizer.fake(w, state)


_rounded = jit(_fake, static_argnames=("quantizer",))


class FinishedLayers:
    """A folder of finished layers, by which a killed quantization goes on; of one model, method and calibration.

    Iterating reads them one after another: of a whole model, one layer at a time is in memory.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], count: int):
        """Opens or makes the folder of `count` layers.

        Raises:
          RunFolderError: it holds layers of other settings, which say what model and version they are of.
        """
        self._folder, self._count = folder, count
        text = json.dumps(settings, indent=2, sort_keys=True)
        place = folder / "settings.json"
        # Settings under which no layer was finished bind nobody: they may be why none was.
        if place.is_file() and place.read_text() != text and any(folder.glob("layer_*.npz")):
            raise self._other()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(place, text.encode(), RunFolderError)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[QuantizedLayer]:
        for index in range(self._count):
            layer = self.read(index, None)
            assert layer is not None, index
            yield layer

    def read(self, index: int, original: str | None) -> QuantizedLayer | None:
        """Returns a layer, None where it is not finished.

        Args:
          index: of the layer.
          original: fingerprint of the float layer that it must be made of; None asks for none.

        Raises:
          RunFolderError: it was made of another one.
        """
        place = self._place(index)
        if not place.is_file():
            return None
        with np.load(place) as arrays:
            if original is not None and str(arrays["original"]) != original:
                raise self._other()
            kernels = {
                path: QuantizedKernel(
                    {key: arrays[f"state:{path}:{key}"] for key in kept["state"]},
                    None if kept["levels"] is None else (kept["levels"][0], tuple(kept["levels"][1])),
                    kept["bits"],
                    kept["error"],
                    kept["width"],
                )
                for path, kept in json.loads(str(arrays["kernels"])).items()
            }
            leaves = {name.removeprefix("leaf:"): arrays[name] for name in arrays.files if name.startswith("leaf:")}
            inputs: dict[str, dict[str, np.ndarray]] = {}
            for name in (name for name in arrays.files if name.startswith("input:")):
                _, path, key = name.split(":")
                inputs.setdefault(path, {})[key] = arrays[name]
        return QuantizedLayer(leaves, kernels, inputs)

    def write(self, index: int, layer: QuantizedLayer, original: str) -> None:
        """Keeps a layer, whole or not at all; `original` is the fingerprint of what it was made of."""
        arrays = {f"leaf:{path}": leaf for path, leaf in layer.leaves.items()}
        kept = {}
        for path, kernel in layer.kernels.items():
            arrays |= {f"state:{path}:{key}": leaf for key, leaf in kernel.state.items()}
            kept[path] = {**dataclasses.asdict(kernel), "state": list(kernel.state)}
        for path, state in layer.inputs.items():
            arrays |= {f"input:{path}:{key}": leaf for key, leaf in state.items()}
        texts = {"kernels": np.asarray(json.dumps(kept)), "original": np.asarray(original)}
        with replacing(self._place(index), RunFolderError) as file:
            np.savez(file, allow_pickle=False, **texts, **arrays)

    def _place(self, index: int) -> Path:
        return self._folder / f"layer_{index:04d}.npz"

    def _other(self) -> RunFolderError:
        return RunFolderError(
            f"{self._folder} holds layers of another model or version, or that were quantized with other settings",
            "remove it, or give another output",
        )
