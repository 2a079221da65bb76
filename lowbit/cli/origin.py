"""The record in a packed file of what it was made from, by which `verify` finds the other side."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lowbit.cli.usage import UsageError

KEY = "origin"

OF_QUANTIZE = "quantization"
"""What stands in its place where `quantize` wrote the packed file: settings, and no masters to compare with."""

Kind = Literal["run", "base", "pretrained"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a packed model comes from. Exports of one source by one commit give equal bytes, whenever they are made.

    Attributes:
      kind: "run", "base" for a run without its adapters, or "pretrained" for a model that was rounded.
      path: run folder, model folder, hub name or file, as `source_path` writes it.
      quant: the section `quant` of the config that it was quantized by; `bits` is None where nothing has a width.
      step: of the run's checkpoint; None for a pretrained model.
      commit: of the code that exported it, None outside of a checkout.
      lowbit_version: of the package that exported it.
    """

    kind: Kind
    path: str
    quant: Mapping[str, Any]
    step: int | None
    commit: str | None
    lowbit_version: str

    def to_meta(self) -> dict[str, Any]:
        """Returns the `meta` of a packed model."""
        return {KEY: dataclasses.asdict(self)}

    def described(self) -> str:
        """Returns it in a few words, with a width where the method has one."""
        if self.kind != "pretrained":
            without = " without its adapters" if self.kind == "base" else ""
            return f"run {self.path} at step {self.step}{without}"
        widths = self.quant["layer_bits"] or (self.quant["bits"],)
        to = "" if None in widths else f" to {', '.join(f'{bits:g}' for bits in widths)} bits"
        return f"{self.path} rounded by {self.quant['method']}{to}"


def without_adapters(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `meta` of a packed model that its adapters are taken from: a run is then not what it is made from.

    A model without a record of its run keeps what it has.
    """
    record = meta.get(KEY)
    if not isinstance(record, dict) or record.get("kind") != "run":
        return dict(meta)
    return {**meta, KEY: {**record, "kind": "base"}}


def source_path(source: str) -> str:
    """Returns a source's path in one spelling: `./runs/w2/` is `runs/w2`. Hub names stay as they are."""
    return str(Path(source))


def read_origin(meta: Mapping[str, Any], path: str) -> Origin:
    """Returns the record from the `meta` of the packed file at `path`.

    Raises:
      UsageError: it holds none, or one of another form.
    """
    record = meta.get(KEY)
    names = {field.name for field in dataclasses.fields(Origin)}
    if (
        not isinstance(record, dict)
        or record.keys() != names
        or record["kind"] not in get_args(Kind)
        or not isinstance(record["quant"], dict)
    ):
        if OF_QUANTIZE in meta:
            raise UsageError(
                f"{path} was written by quantize, beside which no masters are kept to compare it with",
                "quantize to a run folder and export that, or name such a folder: --against RUN",
            )
        raise UsageError(
            f"{path} does not say what it was made from", "name the run folder it was exported from: --against RUN"
        )
    return Origin(**record)
