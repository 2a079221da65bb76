"""The record in a packed file of what it was made from, by which `verify` finds the other side."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from lowbit.cli.usage import UsageError

KEY = "origin"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a packed model comes from. Nothing in it changes with time or machine: equal exports, equal bytes.

    Attributes:
      kind: "run", or "pretrained" for a model that was rounded.
      path: run folder, model folder, hub name or file, as it was given.
      quant: the section `quant` of the config that it was quantized by.
      step: of the run's checkpoint; None for a pretrained model.
      commit: of the code that exported it, None outside of a checkout.
      lowbit_version: of the package that exported it.
    """

    kind: Literal["run", "pretrained"]
    path: str
    quant: Mapping[str, Any]
    step: int | None
    commit: str | None
    lowbit_version: str

    def to_meta(self) -> dict[str, Any]:
        """Returns the `meta` of a packed model."""
        return {KEY: dataclasses.asdict(self)}


def read_origin(meta: Mapping[str, Any], path: str) -> Origin:
    """Returns the record from the `meta` of the packed file at `path`.

    Raises:
      UsageError: it holds none, or one of another form.
    """
    record = meta.get(KEY)
    names = {field.name for field in dataclasses.fields(Origin)}
    if not isinstance(record, dict) or record.keys() != names or record["kind"] not in ("run", "pretrained"):
        raise UsageError(
            f"{path} does not say what it was made from", "name the run folder it was exported from: --against RUN"
        )
    return Origin(**record)
