"""Losses of finished layers on the disk, by which a killed measurement goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.atomic import write_atomically
from lowbit.errors import RunFolderError
from lowbit.mixed.trial import Rows


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

    def remove(self) -> None:
        """Takes the file away, if there is one: the measurement is done."""
        self._path.unlink(missing_ok=True)
