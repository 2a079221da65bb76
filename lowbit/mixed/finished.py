"""Losses of finished layers on the disk, by which a killed measurement goes on, layer by layer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lowbit.atomic import write_atomically
from lowbit.errors import RunFolderError
from lowbit.mixed.trial import FloatLayer, Progress, Rows, Sensitivities, Trial, float_layers
from lowbit.models.layerwise import LayerSource


class FinishedRows:
    """A file of the layers that are done; of one model, trial and measure, which its settings say."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """Opens the file, or begins one.

        Raises:
          RunFolderError: it holds losses of other settings.
        """
        self._path = path
        self._settings = json.loads(json.dumps(settings))  # tuples as lists, to be compared with what is read
        self._layers: dict[str, Rows] = {}
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["settings"] != self._settings:
                raise RunFolderError(
                    f"{path} holds losses of another model or version, or that were found with other settings",
                    "remove it, or give another output",
                )
            self._layers = kept["layers"]

    def read(self, layer: int) -> Rows | None:
        """Returns the losses of a layer, None where it is not finished."""
        return self._layers.get(str(layer))

    def write(self, layer: int, rows: Rows) -> None:
        """Keeps a layer's losses, whole or not at all."""
        self._layers[str(layer)] = rows
        write_atomically(self._path, json.dumps({"settings": self._settings, "layers": self._layers}).encode())


def layer_by_layer(
    by: str,
    source: LayerSource,
    trial: Trial,
    rows_of: Callable[[FloatLayer], Rows],
    finished: FinishedRows | None,
    progress: Progress | None,
    devices: Sequence[jax.Device] | None,
) -> Sensitivities:
    """Returns what `rows_of` finds of each layer of the float model, those that are finished read back.

    Args:
      by: names the measure.
      source: the float model.
      trial: widths and calibration, checked.
      rows_of: measures one layer.
      finished: where rows of finished layers are kept; None keeps none.
      progress: called after each layer.
      devices: over which the rows of calibration are spread; None takes all of this process.
    """
    layers: list[Rows] = []
    for layer in float_layers(source, trial.calibration, devices):
        rows = None if finished is None else finished.read(layer.index)
        if rows is None:
            rows = rows_of(layer)
            if finished is not None:
                finished.write(layer.index, rows)
        layers.append(rows)
        if progress is not None:
            progress(layer.index + 1, source.cfg.num_layers)
    return Sensitivities.of_rows(by, trial.widths, layers)
