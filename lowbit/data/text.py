"""From text files to the token arrays that training reads.

A document is the `text` of a JSONL row, or a whole plain file. Each is encoded by itself and followed by the
separator token, so that the stream can be cut into windows anywhere.
"""

import bz2
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

import numpy as np

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


def read_documents(path: str | Path) -> Iterator[str]:
    """Yields the documents of one file: `.jsonl`, or plain `.txt`, `.md`, `.raw`; plain, `.gz` or `.bz2`.

    Raises:
      DataError: the file is missing, of another kind, damaged, not UTF-8, or a row has no `text`.
    """
    (path,) = find_texts([path])
    try:
        with _open(path) as file:
            if _kind(path) == ROWS_SUFFIX:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _row_text(line, f"{path}:{number}")
            else:
                yield file.read()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "fetch the file again, as UTF-8 text") from error


def encode_documents(documents: Iterable[str], tokenizer: TextTokenizer) -> Tokens:
    """Returns one stream of tokens `[n]`, the separator after every document; empty documents are left out.

    The type is uint16 where the model's vocabulary fits, else uint32.

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
        raise DataError("the text is empty", "give at least one document with text in it")
    return np.concatenate(parts)


def encode_files(paths: Iterable[str | Path], tokenizer: TextTokenizer) -> Tokens:
    """Returns the documents of files and folders as one stream of tokens `[n]`, in order.

    Raises:
      DataError: as `find_texts`, `read_documents` and `encode_documents`.
    """
    files = find_texts(paths)
    return encode_documents((document for file in files for document in read_documents(file)), tokenizer)


def save_tokens(path: str | Path, tokens: Tokens) -> None:
    """Writes a token file that `TokenWindows.open` reads; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, tokens, allow_pickle=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _endings() -> str:
    return ", ".join((*PLAIN_SUFFIXES, ROWS_SUFFIX)) + " (with " + " or ".join(COMPRESSED_SUFFIXES) + " if you like)"


def _kind(path: Path) -> str | None:
    """The suffix that says how to read the file, compression aside; None for a file of another kind."""
    name = path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path
    return name.suffix if name.suffix in (*PLAIN_SUFFIXES, ROWS_SUFFIX) else None


def _open(path: Path) -> TextIOWrapper:
    # newline="" keeps line ends as they are: bits per byte is about the bytes of the file.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    if path.suffix == ".bz2":
        return bz2.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _row_text(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}", "put one JSON object on each line") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place} has no string under 'text'", 'write rows such as {"text": "..."}')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which is no character
        raise DataError(f"{place} is not valid Unicode: {error}", "mend or leave out this row") from error
    return text
