"""Where documents come from: text files, and data sets of the Hugging Face hub."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lowbit.data.hub import HubDataset
from lowbit.data.manifest import file_sha256
from lowbit.data.text import documents_from, find_texts

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w-]*")  # without a suffix: that would be a file's name


@runtime_checkable
class Source(Protocol):
    """An ordered list of documents that can be read from any place in it."""

    def size(self) -> int | None:
        """Returns how many bytes there are to read; None if nobody knows."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what the manifest says of it; equal identities mean equal documents."""
        ...

    def documents(self, start: int) -> Iterator[tuple[str, int]]:
        """Yields (document, how much of `size` lies behind) from document number `start` on."""
        ...


@dataclass(frozen=True)
class TextFile:
    """One text file; see `lowbit.data.read_documents` for the kinds.

    Attributes:
      path: the file.
      field: where a row has its text.
    """

    path: Path
    field: str

    def size(self) -> int:
        """Bytes of the file, compressed as it is."""
        return self.path.stat().st_size

    def identity(self) -> dict[str, Any]:
        """Returns name, field, size and SHA-256 of the file."""
        sha256 = file_sha256(self.path)
        return {"file": str(self.path), "field": self.field, "size": self.size(), "sha256": sha256}

    def documents(self, start: int) -> Iterator[tuple[str, int]]:
        """Yields documents; see `documents_from`."""
        return documents_from(self.path, self.field, start)


def find_sources(
    names: Iterable[str],
    *,
    field: str = "text",
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Sequence[Source]:
    """Returns the sources that the names stand for: files, folders of files, and hub data sets such as "owner/name".

    What is on disk is a file or a folder; only a name of nothing there is looked for on the hub.

    Args:
      names: in the order of the stream.
      field: where a row has its text.
      subset: of the data sets, where they have several (their `config name`).
      split: of the data sets.
      revision: branch, tag or commit of the data sets; None takes their newest commit.

    Raises:
      DataError: a file is missing or of another kind, or a data set cannot be reached.
    """
    sources: list[Source] = []
    for name in names:
        if not Path(name).exists() and _HUB_NAME.fullmatch(name):
            sources.append(HubDataset.at_commit(name, subset=subset, split=split, revision=revision, field=field))
        else:
            sources += [TextFile(path, field) for path in find_texts([name])]
    return sources
