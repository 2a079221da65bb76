"""A teacher's likeliest tokens on disk: a record a window, found by the window's number, whatever the order of reading.

A folder holds

    job.json            what the cache is of, and which windows it keeps; written first
    windows.npy         their numbers, ascending
    shard-00000.npy     records of the next so many windows: ids, fp16 log-probabilities, fp16 log of the tail's mass
    shard-00000.json    the shard's SHA-256 and what the truncation took away
    cache.json          the same of all shards together; written last

A shard is there whole or not at all, so an interrupted cache goes on behind its last one, to the same bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.atomic import SUFFIX, replacing, write_atomically
from lowbit.data.manifest import file_sha256
from lowbit.errors import DataError
from lowbit.locks import NAME, sole_writer

FORMAT, VERSION = "lowbit-teacher-cache", 1
_AGAIN = "make the cache again with `python -m lowbit cache-teacher`"
LOWEST = -60.0
"""Log-probabilities below it are kept as it."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a cache is of.

    Attributes:
      teacher: fingerprint of the teacher.
      text: `TokenWindows.fingerprint` of the text.
      length: predictions a window, t.
      vocab_size: of the teacher.
      k: tokens kept at each position.
      temperature: of the distributions.
      separator: token between documents that the teacher kept apart; None where it saw whole windows.
    """

    teacher: str
    text: str
    length: int
    vocab_size: int
    k: int
    temperature: float
    separator: int | None

    def __post_init__(self) -> None:
        if not 1 <= self.k < self.vocab_size:
            raise DataError(
                f"{self.k} tokens kept of a vocabulary of {self.vocab_size:,}",
                f"keep at least 1 and at most {self.vocab_size - 1:,}",
            )

    @property
    def record(self) -> np.dtype[Any]:
        """One window as it lies on disk."""
        wide = "<u2" if self.vocab_size <= 1 << 16 else "<u4"
        kept = (self.length, self.k)
        return np.dtype([("ids", wide, kept), ("log_probs", "<f2", kept), ("tail", "<f2", (self.length,))])

    @property
    def bytes_per_token(self) -> float:
        """What a predicted token takes on disk."""
        return self.record.itemsize / self.length


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
      file: its name.
      windows: how many records.
      sha256: of the file.
      tail_mass: mean probability that was not kept.
      tail_information: see `buckets.Truncation`, mean in nats/token.
    """

    file: str
    windows: int
    sha256: str
    tail_mass: float
    tail_information: float


Teach = Callable[[NDArray[np.int64]], tuple[np.ndarray, np.ndarray, np.ndarray, float, float]]
"""Numbers of windows [w] -> ids [w t k], log_probs [w t k], tail [w t], mean tail mass and tail information."""


def write_cache(
    folder: Path, identity: Identity, windows: NDArray[np.int64], windows_per_shard: int, teach: Teach
) -> Iterator[Shard]:
    """Writes what is missing of a cache, and yields every shard as it is there; the last one finishes the cache.

    Args:
      folder: new, or of an interrupted cache.
      identity: what it is of.
      windows: numbers of the windows to keep, ascending.
      windows_per_shard: records a file.
      teach: runs the teacher; it is asked for whole shards.

    Raises:
      DataError: the folder holds another cache or something else, or cannot be written.
      LockedError: another process is writing it.
    """
    job = {
        "format": FORMAT,
        "version": VERSION,
        **dataclasses.asdict(identity),
        "windows": len(windows),
        "windows_sha256": hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest(),
        "windows_per_shard": windows_per_shard,
    }
    _make(folder)
    with sole_writer(folder):
        _claim(folder, job)
        with replacing(folder / "windows.npy", DataError) as file:
            np.save(file, windows.astype("<i8"))
        shards = []
        for number, start in enumerate(range(0, len(windows), windows_per_shard)):
            place = folder / f"shard-{number:05d}.npy"
            note = place.with_suffix(".json")
            if not note.is_file():
                _write_shard(place, identity, windows[start : start + windows_per_shard], teach)
            shards.append(Shard(**_json(note)))
            if start + windows_per_shard >= len(windows):
                _write_json(folder / "cache.json", {**job, "shards": [dataclasses.asdict(shard) for shard in shards]})
            yield shards[-1]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}", "give another folder") from error


def _claim(folder: Path, job: dict[str, Any]) -> None:
    mend = "give another folder, or remove this one"
    place = folder / "job.json"
    if place.is_file():
        found = _json(place)
        odd = sorted(key for key in job.keys() | found.keys() if job.get(key) != found.get(key))
        if odd:
            raise DataError(f"{folder} holds another cache: {', '.join(odd)} differ", mend)
        return
    if any(path.name != NAME and path.suffix != SUFFIX for path in folder.iterdir()):
        raise DataError(f"{folder} exists and is no cache of a teacher", mend)
    _write_json(place, job)


def _write_shard(place: Path, identity: Identity, windows: NDArray[np.int64], teach: Teach) -> None:
    ids, log_probs, tail, mass, information = teach(windows)
    records = np.empty(len(windows), identity.record)
    records["ids"] = ids
    records["log_probs"] = np.maximum(log_probs, LOWEST)
    records["tail"] = np.maximum(tail, LOWEST)
    with replacing(place, DataError) as file:
        np.save(file, records, allow_pickle=False)
    # Behind its shard: what has a note is whole.
    _write_json(
        place.with_suffix(".json"),
        dataclasses.asdict(Shard(place.name, len(windows), file_sha256(place), mass, information)),
    )


def _write_json(place: Path, values: dict[str, Any]) -> None:
    write_atomically(place, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode(), DataError)


def _json(place: Path) -> dict[str, Any]:
    try:
        values = json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read: {error}", _AGAIN) from error
    if not isinstance(values, dict):
        raise DataError(f"{place} holds no JSON object", _AGAIN)
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherCache:
    """A finished cache, mapped into memory.

    Attributes:
      folder: where it lies.
      identity: what it is of.
      shards: its files.
      windows: numbers of the windows it keeps, ascending `[w]`.
      records: the shards' contents.
    """

    folder: Path
    identity: Identity
    shards: tuple[Shard, ...]
    windows: NDArray[np.int64]
    records: tuple[np.ndarray, ...]

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> "TeacherCache":
        """Maps a cache into memory; with `verify`, every byte is compared with its hash.

        Raises:
          DataError: no finished cache, one of another version, or damaged files.
        """
        if not (folder / "cache.json").is_file():
            raise DataError(f"{folder} holds no finished cache of a teacher", _AGAIN)
        values = _json(folder / "cache.json")
        if (values.get("format"), values.get("version")) != (FORMAT, VERSION):
            raise DataError(f"{folder} is no cache of a teacher, or of another version", _AGAIN)
        try:
            identity = Identity(**{field.name: values[field.name] for field in dataclasses.fields(Identity)})
            shards = tuple(Shard(**shard) for shard in values["shards"])
            windows = np.load(folder / "windows.npy", allow_pickle=False)
            records = tuple(np.load(folder / s.file, mmap_mode="r", allow_pickle=False) for s in shards)
        except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
            raise DataError(f"{folder} is damaged: {error}", _AGAIN) from error
        for shard, record in zip(shards, records, strict=True):
            if record.dtype != identity.record or record.shape != (shard.windows,):
                raise DataError(f"{folder / shard.file} is not what was written", _AGAIN)
            if verify and file_sha256(folder / shard.file) != shard.sha256:
                raise DataError(f"{folder / shard.file} was changed: its SHA-256 differs", _AGAIN)
        if hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest() != values["windows_sha256"]:
            raise DataError(f"{folder / 'windows.npy'} was changed", _AGAIN)
        return cls(folder, identity, shards, windows, records)

    @property
    def tail_mass(self) -> float:
        """Mean probability that was not kept."""
        return self._mean("tail_mass")

    @property
    def tail_information(self) -> float:
        """See `buckets.Truncation`, nats/token."""
        return self._mean("tail_information")

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return sum(record.nbytes for record in self.records)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of everything in it."""
        records = [dataclasses.asdict(self.identity), *map(dataclasses.asdict, self.shards)]
        parts = [json.dumps(record) for record in records]
        return hashlib.sha256("\n".join([*parts, self.windows.tobytes().hex()]).encode()).hexdigest()

    def check(self, wanted: Identity, windows: NDArray[np.int64]) -> None:
        """Refuses a cache that a run cannot learn from.

        Args:
          wanted: what the run reads; its k is not compared.
          windows: numbers of all windows that it reads.

        Raises:
          DataError: another teacher, text, vocabulary, length, temperature or separation of documents; windows that
            are not there.
        """
        what = {
            "vocab_size": "with another vocabulary",
            "text": "of another text",
            "length": "of windows of another length",
            "teacher": "of another teacher",
            "temperature": "at another temperature",
            "separator": "with documents kept apart in another way",
        }
        for key, difference in what.items():
            theirs, own = getattr(self.identity, key), getattr(wanted, key)
            if theirs != own:
                raise DataError(f"{self.folder} is a cache {difference}: {theirs}, and the run has {own}", _AGAIN)
        missing = np.setdiff1d(windows, self.windows)
        if len(missing):
            raise DataError(
                f"{self.folder} lacks {len(missing):,} of the windows that the run reads, such as {missing[0]}",
                "make it for a config with the run's tokens, batch size and seed",
            )

    def rows(self, windows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns what is kept of some windows as int32 `[w t*(2k+1)]`: ids, then the bits of float32 numbers."""
        places = np.searchsorted(self.windows, windows)
        chosen = np.empty(len(windows), self.identity.record)
        for row, place in enumerate(places):
            shard = int(np.searchsorted(self._ends, place, side="right"))
            chosen[row] = self.records[shard][place - (self._ends[shard - 1] if shard else 0)]
        floats = (chosen[name].astype(np.float32).view(np.int32) for name in ("log_probs", "tail"))
        parts = (chosen["ids"].astype(np.int32), *floats)
        return np.concatenate([part.reshape(len(windows), -1) for part in parts], axis=1)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([shard.windows for shard in self.shards])

    def _mean(self, name: str) -> float:
        weights = [shard.windows for shard in self.shards]
        return float(np.average([getattr(shard, name) for shard in self.shards], weights=weights))
