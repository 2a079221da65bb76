"""One stream of tokens on its way into shards, and where it would go on if the process died now."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lowbit.atomic import replacing
from lowbit.data.manifest import Shard
from lowbit.data.tokens import Tokens
from lowbit.errors import DataError


class Place(NamedTuple):
    """A document by the number of its source and its own number in there; places are ordered as they are read."""

    source: int
    document: int


@dataclasses.dataclass(frozen=True)
class Written:
    """What of a stream is safe on disk: whole shards, and where the next one begins.

    Attributes:
      place: the document that the next shard begins in.
      offset: tokens of that document that are in earlier shards.
      documents: how many documents end in the shards.
      text_bytes: UTF-8 bytes of those.
      shards: the finished files.
    """

    place: Place
    offset: int = 0
    documents: int = 0
    text_bytes: int = 0
    shards: tuple[Shard, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Written":
        """Returns what `dataclasses.asdict` and JSON made a record of."""
        shards = tuple(Shard(**shard) for shard in record["shards"])
        return cls(**{**record, "place": Place(*record["place"]), "shards": shards})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the dtype of shards: uint16 where the vocabulary fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ShardWriter:
    """Cuts a stream of documents into files of `shard_tokens` tokens each; the last may be shorter.

    Documents are cut where a shard ends: shards in their order are the stream.

    Attributes:
      written: what is on disk. It changes when a shard is finished, and at no other time.
    """

    def __init__(self, folder: Path, shard_tokens: int, dtype: np.dtype[Any], written: Written):
        self.folder, self.written = folder, written
        self._buffer = np.empty(shard_tokens, dtype)
        self._filled = 0
        self._documents, self._text_bytes = written.documents, written.text_bytes

    def wants(self, place: Place) -> bool:
        """Whether the document has tokens that are in no finished shard."""
        return place >= self.written.place

    def append(self, place: Place, text_bytes: int, tokens: Tokens) -> bool:
        """Takes the next document, all of its tokens; returns whether a shard was finished."""
        # Only the first document after a resumption can be the one that a finished shard ends in.
        begun = not self._filled and place == self.written.place
        at = self.written.offset if begun else 0
        finished = False
        while at < len(tokens):
            count = min(len(tokens) - at, len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = tokens[at : at + count]
            self._filled += count
            at += count
            if self._filled == len(self._buffer) and at < len(tokens):
                self._finish_shard(place, at)
                finished = True
        self._documents += 1
        self._text_bytes += text_bytes
        if self._filled == len(self._buffer):
            self._finish_shard(Place(place.source, place.document + 1), 0)
            finished = True
        return finished

    def close(self, end: Place) -> None:
        """Writes what is left; nothing comes after `end`."""
        if self._filled:
            self._finish_shard(end, 0)
        self.written = dataclasses.replace(self.written, place=end, offset=0)

    def _finish_shard(self, place: Place, offset: int) -> None:
        path = self.folder / f"shard-{len(self.written.shards):05d}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                hashed = _Hashed(file)
                np.save(hashed, self._buffer[: self._filled], allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}", "make room, and give the same command again: it goes on"
            ) from error
        shard = Shard(path.name, self._filled, path.stat().st_size, hashed.digest.hexdigest())
        shards = (*self.written.shards, shard)
        self.written = Written(place, offset, self._documents, self._text_bytes, shards)
        self._filled = 0


class _Hashed:
    """A file to write, with the hash of what went through."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._file.write(content)
