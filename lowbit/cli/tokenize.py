"""`tokenize`: text to token shards that training reads."""

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from lowbit import config as configs
from lowbit.cli.commands import PROGRAM
from lowbit.cli.job_bar import JobBar
from lowbit.cli.packed_file import open_model
from lowbit.cli.sources import kind_of
from lowbit.cli.tables import fields
from lowbit.cli.usage import UsageError
from lowbit.data import Manifest, TextTokenizer, find_sources, tokenize
from lowbit.data.hub import HubDataset
from lowbit.data.tokenization import Progress
from lowbit.models.tokenizer_files import load_tokenizer_files
from lowbit.report.table import format_seconds


def run(arguments: argparse.Namespace) -> int:
    """Tokenizes, and prints what was written and how to train on it."""
    tokenizer = _load(arguments.tokenizer, arguments.separator)
    sources = find_sources(
        arguments.sources,
        field=arguments.field,
        subset=arguments.subset,
        split=arguments.split or "train",
        revision=arguments.revision,
    )
    given = [flag for flag in ("subset", "split", "revision") if getattr(arguments, flag) is not None]
    if given and not any(isinstance(source, HubDataset) for source in sources):
        raise UsageError(f"--{given[0]} is for data sets of the hub, and no SOURCE is one", f"leave out --{given[0]}")
    with contextlib.closing(_Bar()) as bar:
        folders = tokenize(
            sources,
            tokenizer,
            Path(arguments.output),
            valid_share=arguments.valid_share,
            shard_tokens=arguments.shard_tokens,
            report=bar.report,
        )
    print(_summary(folders, bar.last, bar.seconds))
    return 0


def _load(source: str, separator: str | None) -> TextTokenizer:
    wanted = None if separator is None else configs.parse(separator, object, "--separator")
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".json":
        return TextTokenizer.load(path, separator=wanted)
    match kind_of(source):
        case "run":
            files = load_tokenizer_files(path / "model")
        case "packed":
            files = open_model(source, verify=False)[0].tokenizer
        case "pretrained":
            files = load_tokenizer_files(source)
    return TextTokenizer.load(files, separator=wanted)


class _Bar(JobBar):
    """Bytes read of all there are, tokens/s and the time left."""

    def __init__(self) -> None:
        super().__init__("B")
        self.last = Progress(0, 0, 0, 0, None)

    def report(self, progress: Progress) -> None:
        """Moves the bar."""
        self.last = progress
        speed = f"{progress.tokens / self.seconds:,.0f} tokens/s"
        self.move(progress.read, progress.size, found=progress.read, speed=speed)


def _summary(folders: Mapping[str, Path], done: Progress, seconds: float) -> str:
    rows = []
    for folder in folders.values():
        manifest = Manifest.read(folder)
        counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.text_bytes:,} bytes of text"
        rows.append((str(folder), f"{counts}, shards: {len(manifest.shards):,}"))
    speed = f"{done.tokens / seconds:,.0f} tokens/s, {done.text_bytes / seconds / 1e6:.1f} MB/s"
    rows.append(("took", f"{format_seconds(seconds)}, {speed}"))
    flags = [
        f"--config.data.{'valid' if part == 'valid' else 'train'}={quote(str(folder))}"
        for part, folder in folders.items()
    ]
    rows.append(("next", f"{PROGRAM} train CONFIG {' '.join(flags)}"))
    return fields(rows)
