"""From sources of text to folders of token shards, in a way that survives being killed.

Tokens are a pure function of the job (`lowbit.data.jobs`): what a resumed job writes is equal to what an undisturbed
one would have written, byte for byte.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowbit.data.jobs import Job, check_folder
from lowbit.data.shards import Place, ShardWriter, token_dtype
from lowbit.data.sources import Source
from lowbit.data.tokenizer import TextTokenizer
from lowbit.errors import DataError
from lowbit.locks import sole_writer
from lowbit.version import __version__

SHARD_TOKENS = 1 << 26  # 128 MiB of uint16, half a minute of one core
_TEXT_A_CALL = 1 << 22  # bytes: enough for the tokenizer's threads, few enough to stay small in memory


class Progress(NamedTuple):
    """How far a job is.

    Attributes:
      documents: tokenized by this process.
      tokens: made by this process.
      text_bytes: UTF-8 bytes tokenized by this process.
      read: how much of `size` lies behind.
      size: bytes of all sources; None if one does not know its own.
    """

    documents: int
    tokens: int
    text_bytes: int
    read: int
    size: int | None


class _Piece(NamedTuple):
    """A document that is about to be tokenized, and the part it goes to."""

    place: Place
    part: str
    text: str
    size: int
    read: int


def tokenize(
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    valid_share: float = 0.0,
    shard_tokens: int = SHARD_TOKENS,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Path]:
    """Writes the documents of the sources as shards with a manifest, or goes on where the same job was stopped.

    Every document is followed by the separator; empty ones are left out. Tokens are uint16 where the vocabulary fits,
    else uint32.

    Args:
      sources: in the order of the stream.
      tokenizer: encodes, and says which token separates.
      folder: made if need be. With a share it gets the folders `train` and `valid`, without it is the one folder.
      valid_share: of the documents, chosen by a hash of their text, so that equal documents stay together and a
        document is on the same side whatever comes before it.
      shard_tokens: of every shard but the last.
      report: called now and then.

    Returns:
      The folders by part: "all", or "train" and "valid".

    Raises:
      DataError: the folder holds something else, a source cannot be read or has changed, there is no text, or the disk
        is full.
      LockedError: another process is writing to the folder.
    """
    if not 0 <= valid_share < 1:
        raise DataError(f"a share of {valid_share} of the documents for validation", "give one in [0, 1)")
    if shard_tokens < 2:
        raise DataError(f"shards of {shard_tokens} tokens", "ask for at least 2")
    if not sources:
        raise DataError("no text to tokenize", "name at least one source")
    folders = {"train": folder / "train", "valid": folder / "valid"} if valid_share else {"all": folder}
    check_folder(folder)
    identity: dict[str, Any] = {
        "tokenizer": tokenizer.fingerprint(),
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "options": {"valid_share": valid_share, "shard_tokens": shard_tokens},
        "sources": [source.identity() for source in sources],
        "lowbit_version": __version__,
    }
    job = Job(folder, identity, folders)
    with sole_writer(folder):
        written, _ = job.begin()
        dtype = token_dtype(tokenizer.vocab_size)
        writers = {part: ShardWriter(folders[part], shard_tokens, dtype, written[part]) for part in folders}
        job.save(writers, {})  # from now on the folder is known for what it is
        _write_all(sources, tokenizer, writers, valid_share, report, lambda: job.save(writers, {}))
        for writer in writers.values():
            writer.close(Place(len(sources), 0))
        job.save(writers, {})
        if not any(writer.written.tokens for writer in writers.values()):
            job.abandon()
            raise DataError("the text is empty", "give at least one document with text in it")
        job.finish(writers, identity["sources"])
    return folders


def part_of(document: bytes, valid_share: float) -> str:
    """Returns where a document goes: "valid" if its hash, as a fraction of 2^64, is below the share."""
    if not valid_share:
        return "all"
    number = int.from_bytes(hashlib.sha256(document).digest()[:8], "big")
    return "valid" if number < valid_share * 2**64 else "train"


def _write_all(
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    writers: Mapping[str, ShardWriter],
    valid_share: float,
    report: Callable[[Progress], None],
    save: Callable[[], None],
) -> None:
    sizes = [source.size() for source in sources]
    size = None if None in sizes else sum(n for n in sizes if n is not None)
    before = [0, *np.cumsum([n or 0 for n in sizes]).tolist()]
    documents = made = text_bytes = 0
    for batch in _batches(_pieces(sources, writers, valid_share)):
        encoded = tokenizer.encode([piece.text for piece in batch])
        finished = False
        for piece, ids in zip(batch, encoded, strict=True):
            tokens = np.asarray([*ids, tokenizer.separator], np.uint32)
            made += len(tokens)
            finished |= writers[piece.part].append(piece.place, piece.size, tokens)
        if finished:
            save()
        documents += len(batch)
        text_bytes += sum(piece.size for piece in batch)
        read = before[batch[-1].place.source] + batch[-1].read
        report(Progress(documents, made, text_bytes, read, size))


def _pieces(sources: Sequence[Source], writers: Mapping[str, ShardWriter], valid_share: float) -> Iterator[_Piece]:
    first = min(writer.written.place for writer in writers.values())
    for number in range(first.source, len(sources)):
        start = first.document if number == first.source else 0
        for document, (text, read) in enumerate(sources[number].documents(start), start=start):
            content = text.encode()
            part, place = part_of(content, valid_share), Place(number, document)
            if content and writers[part].wants(place):
                yield _Piece(place, part, text, len(content), read)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.size
        if size >= _TEXT_A_CALL:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
