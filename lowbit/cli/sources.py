"""What a SOURCE on the command line is: a run, a packed file, or a float model that flags may round."""

import argparse
from pathlib import Path
from typing import Literal

from lowbit.cli.usage import UsageError

Kind = Literal["run", "packed", "pretrained"]

PACKED_SUFFIXES = (".lowbit", ".safetensors")
"""A name that ends so is a packed file even where there is none: it is no name of a hub model."""


ROUNDING_FLAGS = ("method", "bits", "granularity", "scale_init", "activations", "kv_bits")
"""Of `eval` and `export`: what they make of a pretrained model."""


def kind_of(source: str) -> Kind:
    """Returns what a source must be, from its name and from what lies there; reads no file.

    A folder with a config and a model/ inside is a run. A `.gguf` file, any other folder, and whatever does not exist
    (a hub name, perhaps) is pretrained. Any other file is packed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return "run" if (path / "config.json").is_file() and (path / "model").is_dir() else "pretrained"
    if path.suffix == ".gguf":
        return "pretrained"
    return "packed" if path.is_file() or path.suffix in PACKED_SUFFIXES else "pretrained"


def asks_for_rounding(arguments: argparse.Namespace) -> bool:
    """Whether any of the flags that round a pretrained model is given."""
    return any(getattr(arguments, name) is not None for name in ROUNDING_FLAGS)


def refuse_rounding(arguments: argparse.Namespace) -> None:
    """Refuses the flags that round, for a model that is quantized already.

    Raises:
      UsageError: one of them is given.
    """
    if asks_for_rounding(arguments):
        flags = ", ".join("--" + name.replace("_", "-") for name in ROUNDING_FLAGS)
        raise UsageError(f"{arguments.source} is quantized already", f"leave out {flags}: they round pretrained models")
