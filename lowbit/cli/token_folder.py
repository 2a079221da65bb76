"""`inspect` of a folder of token shards: what its manifest says, and whether the shards are those."""

import dataclasses
import json
from pathlib import Path

from lowbit.cli.tables import fields, table
from lowbit.data import Manifest


def show(folder: Path, *, checksums: bool, as_json: bool) -> None:
    """Prints counts, sources and shards; sizes are compared always, every byte of the shards if asked.

    Raises:
      DataError: the manifest is damaged, or a shard is missing, cut or changed.
    """
    manifest = Manifest.read(folder)
    if checksums:
        manifest.verify(folder)
    else:
        manifest.open(folder)
    if as_json:
        record = {"path": str(folder), "checksums_compared": checksums, **dataclasses.asdict(manifest)}
        print(json.dumps(record, indent=2, allow_nan=False))
        return
    rows = [[shard.file, f"{shard.tokens:,}", f"{shard.size:,}"] for shard in manifest.shards]
    print(table(["shard", "tokens", "bytes"], rows))
    print("\nsources")
    for source in manifest.sources:
        print("  " + ", ".join(f"{name} {value}" for name, value in source.items() if value is not None))
    per_token = manifest.text_bytes / max(1, manifest.tokens)
    pairs = [
        ("part", manifest.part),
        ("documents", f"{manifest.documents:,}"),
        ("tokens", f"{manifest.tokens:,}"),
        ("text", f"{manifest.text_bytes:,} bytes, {per_token:.3f} a token"),
        ("vocabulary", f"{manifest.vocab_size:,}, documents end with token {manifest.separator}"),
        ("tokenizer", manifest.tokenizer),
        ("written by", f"lowbit {manifest.lowbit_version}"),
    ]
    if checksums:
        pairs.append(("checksums", "every shard has the bytes that were written"))
    print()
    print(fields(pairs))
