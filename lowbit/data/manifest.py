"""A folder of token shards and the manifest that says what they are: the form is in docs/data.md.

Only a finished folder has a manifest, so that what is read is what was meant to be written.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, get_origin

from lowbit.atomic import write_atomically
from lowbit.data.tokenizer import TextTokenizer
from lowbit.data.tokens import Tokens, map_tokens
from lowbit.errors import DataError, TokenizerError

FILE = "manifest.json"
FORMAT, VERSION = "lowbit-tokens", 1
_AGAIN = "make the folder again with `python -m lowbit tokenize`"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One `.npy` file of tokens.

    Attributes:
      file: its name in the folder.
      tokens: how many it holds.
      size: bytes of the file.
      sha256: of the file.
    """

    file: str
    tokens: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and what it was made from.

    Attributes:
      tokenizer: `TextTokenizer.fingerprint` of the tokenizer.
      vocab_size: every token is below it.
      separator: the token after every document.
      part: "all", or "train" or "valid" of a split.
      documents: how many, empty ones left out.
      tokens: how many, separators included.
      text_bytes: UTF-8 bytes of the documents.
      options: what else fixes the tokens, by name.
      sources: what the text was read from, in order: names, and hashes of files or commits of data sets.
      shards: in the order of the stream.
      lowbit_version: of the package that wrote it.
    """

    tokenizer: str
    vocab_size: int
    separator: int
    part: str
    documents: int
    tokens: int
    text_bytes: int
    options: dict[str, Any]
    sources: list[dict[str, Any]]
    shards: tuple[Shard, ...]
    lowbit_version: str

    def write(self, folder: Path) -> None:
        """Writes it into the folder of its shards."""
        record = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        write_atomically(folder / FILE, text.encode(), DataError)

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Reads the manifest of a folder.

        Raises:
          DataError: there is none, or one of another form or version.
        """
        place = Path(folder) / FILE
        try:
            record = json.loads(place.read_bytes())
        except OSError as error:
            raise DataError(f"{folder} holds no {FILE}: it is no finished folder of tokens", _AGAIN) from error
        except ValueError as error:
            raise DataError(f"{place} is not JSON: {error}", _AGAIN) from error
        if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
            raise DataError(f"{place} is not the manifest of a folder of tokens", _AGAIN)
        version = record.pop("version", None)
        if version != VERSION:
            raise DataError(f"{place} is of version {version}, and this lowbit reads {VERSION}", _AGAIN)
        try:
            shards = tuple(_typed(Shard, shard) for shard in record.pop("shards"))
            manifest = _typed(cls, {**record, "shards": shards})
            if sum(shard.tokens for shard in shards) != manifest.tokens:
                raise ValueError("the shards do not add up to its tokens")
            if any(Path(shard.file).name != shard.file for shard in shards):
                raise ValueError("a shard lies outside of the folder")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{place} does not say what it must: {error}", _AGAIN) from error
        return manifest

    def open(self, folder: str | Path) -> tuple[Tokens, ...]:
        """Maps the shards into memory, and checks their sizes.

        Raises:
          DataError: a shard is missing, cut or no token array.
        """
        arrays = []
        for shard in self.shards:
            place = Path(folder) / shard.file
            size = place.stat().st_size if place.is_file() else None
            if size != shard.size:
                found = "missing" if size is None else f"{size:,} bytes long"
                raise DataError(f"{place} is {found}, and was written with {shard.size:,} bytes", "copy it again")
            tokens = map_tokens(place)
            if len(tokens) != shard.tokens:
                raise DataError(f"{place} holds {len(tokens):,} tokens, not {shard.tokens:,}", "copy it again")
            arrays.append(tokens)
        return tuple(arrays)

    def verify(self, folder: str | Path) -> None:
        """Reads every byte of the shards and compares their hashes.

        Raises:
          DataError: a shard is missing, cut or changed.
        """
        self.open(folder)
        for shard in self.shards:
            place = Path(folder) / shard.file
            if file_sha256(place) != shard.sha256:
                raise DataError(f"{place} was changed after it was written: its SHA-256 differs", "copy it again")

    def check_tokenizer(self, folder: str | Path, vocab_size: int, tokenizer: TextTokenizer | None) -> None:
        """Refuses tokens of another tokenizer than a model's.

        Args:
          folder: for the message.
          vocab_size: rows of the model's embedding table.
          tokenizer: the model's; None, for a model that comes without one, compares sizes alone.

        Raises:
          TokenizerError: the tokenizers differ, or there are more tokens than rows.
        """
        mend = "tokenize the text again with this model's tokenizer"
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"{folder} has tokens of a vocabulary of {self.vocab_size:,}, the model {vocab_size:,}", mend
            )
        if tokenizer is not None and tokenizer.fingerprint() != self.tokenizer:
            raise TokenizerError(f"{folder} was made with another tokenizer than the model's", mend)


def is_token_folder(path: str | Path) -> bool:
    """Whether a path is a folder with a manifest."""
    return (Path(path) / FILE).is_file()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _typed(cls: type, values: dict[str, Any]) -> Any:
    """The dataclass of these values; raises KeyError or TypeError for a name or type that is not its own."""
    for field in dataclasses.fields(cls):
        kind: Any = field.type
        if not isinstance(values[field.name], get_origin(kind) or kind):
            raise TypeError(f"{field.name} is {values[field.name]!r:.40}")
    return cls(**values)
