"""`tokenize`: text to token shards that training reads."""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lowbit import config as configs
from lowbit.cli.commands import PROGRAM
from lowbit.cli.packed_file import open_model
from lowbit.cli.sources import kind_of
from lowbit.cli.tables import fields
from lowbit.data import Manifest, TextTokenizer, find_sources, tokenize
from lowbit.data.tokenization import Progress
from lowbit.models.tokenizer_files import load_tokenizer_files
from lowbit.report.table import format_seconds

LOG_SECONDS = 30.0
"""Between two lines of progress where nobody watches, such as in the log of a cluster."""


def run(arguments: argparse.Namespace) -> int:
    """Tokenizes, and prints what was written and how to train on it."""
    tokenizer = _load(arguments.tokenizer, arguments.separator)
    sources = find_sources(
        arguments.sources,
        field=arguments.field,
        subset=arguments.subset,
        split=arguments.split,
        revision=arguments.revision,
    )
    with _Bar() as bar:
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


class _Bar:
    """Bytes read of all there are, tokens/s and the time left, on stderr."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.last = Progress(0, 0, 0, 0, None)
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def report(self, progress: Progress) -> None:
        """Moves the bar; what a job finds done already is no part of its speed."""
        if self._bar is None:
            self._bar = tqdm(
                total=progress.size,
                initial=progress.read,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else LOG_SECONDS,
            )
        self.last = progress
        self._bar.set_postfix_str(f"{progress.tokens / self.seconds:,.0f} tokens/s", refresh=False)
        self._bar.update(progress.read - self._bar.n)

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self.began


def _summary(folders: Mapping[str, Path], done: Progress, seconds: float) -> str:
    rows = []
    for folder in folders.values():
        manifest = Manifest.read(folder)
        counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.text_bytes:,} bytes of text"
        rows.append((str(folder), f"{counts}, shards: {len(manifest.shards):,}"))
    speed = f"{done.tokens / seconds:,.0f} tokens/s, {done.text_bytes / seconds / 1e6:.1f} MB/s"
    rows.append(("took", f"{format_seconds(seconds)}, {speed}"))
    flags = [f"--config.data.{'valid' if part == 'valid' else 'train'}={folder}" for part, folder in folders.items()]
    rows.append(("next", f"{PROGRAM} train CONFIG {' '.join(flags)}"))
    return fields(rows)
