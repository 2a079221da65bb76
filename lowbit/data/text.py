"""From text files to the token arrays that training reads.

A document is the `text` of a row (JSONL, Parquet), or a whole plain file. Each is encoded by itself and followed by the
separator token, so that the stream can be cut into windows anywhere.
"""

import bz2
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader, TextIOWrapper
from itertools import islice
from pathlib import Path

import numpy as np

from lowbit.atomic import replacing
from lowbit.data import parquet
from lowbit.data.tokenizer import TextTokenizer
from lowbit.data.tokens import Tokens
from lowbit.errors import DataError

PLAIN_SUFFIXES = (".txt", ".md", ".raw")
ROWS_SUFFIX = ".jsonl"
COMPRESSED_SUFFIXES = (".gz", ".bz2")
_DOCUMENTS_A_CALL = 256  # enough for the tokenizer's threads, few enough to stay small in memory


def find_texts(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the text files among `paths`; a folder stands for all text files below it, by name.

    Raises:
      DataError: a path is missing or not a text file, or a folder holds none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) is not None)
            if not inside:
                raise DataError(f"the folder {path} holds no text", f"put files in it that end in {_endings()}")
            found += inside
        elif not path.is_file():
            raise DataError(f"no text at {path}", "check the path")
        elif _kind(path) is None:
            raise DataError(f"{path} is not a text file that can be read", f"give files that end in {_endings()}")
        else:
            found.append(path)
    return found


def read_documents(path: str | Path, field: str = "text") -> Iterator[str]:
    """Yields the documents of one file: rows of `.jsonl` or `.parquet`, or the whole of a `.txt`, `.md` or `.raw`.

    All but Parquet may be compressed, `.gz` or `.bz2`.

    Raises:
      DataError: the file is missing, of another kind, damaged, not UTF-8, or a row has no string under `field`.
    """
    (path,) = find_texts([path])
    return (document for document, _ in documents_from(path, field, 0))


def documents_from(path: Path, field: str, start: int) -> Iterator[tuple[str, int]]:
    """Yields (document, bytes of the file that lie behind) of one file, beginning with document number `start`.

    Raises:
      DataError: as `read_documents`.
    """
    if _kind(path) == parquet.SUFFIX:
        yield from parquet.read_column(path, field, start)
        return
    try:
        with path.open("rb") as raw, _decoded(raw, path.suffix) as file:
            if _kind(path) == ROWS_SUFFIX:
                rows = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
                for number, line in islice(rows, start, None):
                    yield _row_text(line, field, f"{path}:{number}"), raw.tell()
            elif start == 0:
                yield file.read(), raw.tell()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "fetch the file again, as UTF-8 text") from error


def encode_documents(documents: Iterable[str], tokenizer: TextTokenizer, name: str = "the text") -> Tokens:
    """Returns one stream of tokens `[n]`, the separator after every document; empty documents are left out.

    The type is uint16 where the model's vocabulary fits, else uint32. `name` is what an error calls the documents.

    Raises:
      DataError: there is no text at all.
    """
    dtype: type[np.unsignedinteger] = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    stream = iter(documents)
    parts: list[Tokens] = []
    while batch := list(islice(stream, _DOCUMENTS_A_CALL)):
        for ids in tokenizer.encode([text for text in batch if text]):
            parts.append(np.asarray([*ids, tokenizer.separator], dtype))
    if not parts:
        raise DataError(f"{name} is empty", "give at least one document with text in it")
    return np.concatenate(parts)


def encode_files(paths: Iterable[str | Path], tokenizer: TextTokenizer) -> Tokens:
    """Returns the documents of files and folders as one stream of tokens `[n]`, in order.

    Raises:
      DataError: as `find_texts`, `read_documents` and `encode_documents`.
    """
    paths = list(paths)
    files = find_texts(paths)
    documents = (document for file in files for document in read_documents(file))
    return encode_documents(documents, tokenizer, ", ".join(map(str, paths)))


def save_tokens(path: str | Path, tokens: Tokens) -> None:
    """Writes a token file that `TokenWindows.open` reads; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, DataError) as file:
        np.save(file, tokens, allow_pickle=False)


def _endings() -> str:
    compressed = " (with " + " or ".join(COMPRESSED_SUFFIXES) + " if you like)"
    return ", ".join((*PLAIN_SUFFIXES, ROWS_SUFFIX)) + f"{compressed} or {parquet.SUFFIX}"


def _kind(path: Path) -> str | None:
    """The suffix that says how to read the file, compression aside; None for a file of another kind."""
    if path.suffix == parquet.SUFFIX:
        return path.suffix
    name = path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path
    return name.suffix if name.suffix in (*PLAIN_SUFFIXES, ROWS_SUFFIX) else None


def _decoded(raw: BufferedReader, suffix: str) -> TextIOWrapper:
    # newline="" keeps line ends as they are: bits per byte is about the bytes of the file.
    if suffix == ".gz":
        return gzip.open(raw, "rt", encoding="utf-8", newline="")
    if suffix == ".bz2":
        return bz2.open(raw, "rt", encoding="utf-8", newline="")
    return TextIOWrapper(raw, encoding="utf-8", newline="")


def _row_text(line: str, field: str, place: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}", "put one JSON object on each line") from error
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place} has no string under {field!r}", f'write rows such as {{"{field}": "..."}}')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which is no character
        raise DataError(f"{place} is not valid Unicode: {error}", "mend or leave out this row") from error
    return text
