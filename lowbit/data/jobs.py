"""A folder of shards while it is being written: what it is to become, and what of it is safe on disk.

`progress.json` in the folder names the job and how far each stream is. It is replaced at once when a shard is finished,
and removed when the manifests are written, so that a folder is always one of: nothing, a job that goes on where its
last shard ended, or finished.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.atomic import SUFFIX, write_atomically
from lowbit.data.manifest import Manifest, is_token_folder
from lowbit.data.shards import Place, ShardWriter, Written
from lowbit.errors import DataError
from lowbit.locks import NAME

PROGRESS = "progress.json"
_OVER = "remove the folder and start over"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is written, and where.

    Attributes:
      folder: of the job.
      identity: everything that fixes the bytes, JSON: tokenizer, vocab_size, separator, options, sources and
        lowbit_version, as a `Manifest` has them.
      folders: where the shards of each stream lie, by the name of the part.
    """

    folder: Path
    identity: Mapping[str, Any]
    folders: Mapping[str, Path]

    def begin(self) -> tuple[dict[str, Written], dict[str, Any]]:
        """Returns what is written already, by part, and the notes beside it: nothing for a new job.

        To be called by the folder's one writer: another may have finished it since it was looked at.

        Raises:
          DataError: the folder is finished or was begun by another job, its record cannot be read, or a finished shard
            is gone.
        """
        check_folder(self.folder)
        for half_written in self.folder.rglob(f".*{SUFFIX}"):
            half_written.unlink()
        place = self.folder / PROGRESS
        if not place.is_file():
            return dict.fromkeys(self.folders, Written(Place(0, 0))), {}
        try:
            record = json.loads(place.read_bytes())
            differing = [name for name in self.identity if self.identity[name] != record["job"][name]]
            if differing:
                raise DataError(
                    f"{self.folder} was begun by another job: other {', '.join(differing)}",
                    f"give the same command, or {_OVER}",
                )
            written = {part: Written.from_json(record["parts"][part]) for part in self.folders}
            notes = record["notes"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place} cannot be read: {error!r}", _OVER) from error
        for part, state in written.items():
            for shard in state.shards:
                path = self.folders[part] / shard.file
                if not path.is_file() or path.stat().st_size != shard.size:
                    raise DataError(f"{path} was finished, and is missing or cut now", _OVER)
        return written, notes

    def save(self, writers: Mapping[str, ShardWriter], notes: Mapping[str, Any]) -> None:
        """Notes how far each stream is, and what else a resumption has to know, JSON."""
        parts = {part: dataclasses.asdict(writer.written) for part, writer in writers.items()}
        text = json.dumps({"job": self.identity, "parts": parts, "notes": notes}, indent=2)
        write_atomically(self.folder / PROGRESS, text.encode(), DataError)

    def abandon(self) -> None:
        """Leaves a folder that nothing came into as if it had not been begun."""
        (self.folder / PROGRESS).unlink()

    def finish(self, writers: Mapping[str, ShardWriter], sources: list[dict[str, Any]]) -> None:
        """Writes the manifests.

        Args:
          writers: closed.
          sources: in place of those of the identity, with what became known of them.
        """
        for part, writer in writers.items():
            self.folders[part].mkdir(exist_ok=True)
            written = writer.written
            Manifest(
                **{**self.identity, "sources": sources},
                part=part,
                documents=written.documents,
                tokens=written.tokens,
                text_bytes=written.text_bytes,
                shards=written.shards,
            ).write(self.folders[part])
        (self.folder / PROGRESS).unlink()


def check_folder(folder: Path) -> None:
    """Makes the folder of a job; to be called before costly work.

    Raises:
      DataError: it is finished or somebody else's, or cannot be made.
    """
    if (folder / PROGRESS).is_file():
        return
    done = [path for path in (folder, folder / "train", folder / "valid") if is_token_folder(path)]
    if done:
        raise DataError(f"{done[0]} is finished already", "read it, or write to another folder")
    if folder.exists() and (not folder.is_dir() or any(not _passing(path) for path in folder.iterdir())):
        raise DataError(f"{folder} exists, and is no folder of tokens", "write to a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}", "write to another folder") from error


def _passing(path: Path) -> bool:
    """Whether a file is one of those that a killed process leaves in a folder that it had hardly begun."""
    return path.name == NAME or path.suffix == SUFFIX
