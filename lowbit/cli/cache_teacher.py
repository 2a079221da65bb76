"""`cache-teacher`: what a teacher says of a run's text, kept on disk."""

import argparse
import sys
import time
from pathlib import Path
from shlex import quote

from lowbit import config as configs
from lowbit.cli.commands import PROGRAM
from lowbit.cli.tables import fields
from lowbit.distill.cache import TeacherCache
from lowbit.report.table import format_bytes, format_seconds
from lowbit.train.setup import make_lesson
from lowbit.train.teacher_cache import write_lessons


def run(arguments: argparse.Namespace) -> int:
    """Writes the cache, and prints what it costs and what it leaves out."""
    config = configs.load(arguments.config, arguments.overrides)
    folder = Path(arguments.output).expanduser()
    lesson = make_lesson(config, arguments.k)
    began, done = time.monotonic(), 0
    for shard in write_lessons(lesson, folder, arguments.windows_per_shard):
        done += shard.windows
        print(f"{done:,} of {len(lesson.windows):,} windows", file=sys.stderr)
    print(fields(_facts(TeacherCache.open(folder), time.monotonic() - began)))
    return 0


def _facts(cache: TeacherCache, seconds: float) -> list[tuple[str, str]]:
    identity = cache.identity
    tokens = len(cache.windows) * identity.length
    return [
        ("cache", str(cache.folder)),
        ("kept", f"the {identity.k} likeliest of {identity.vocab_size:,} tokens, at {tokens:,} positions"),
        ("size", f"{format_bytes(cache.nbytes)}, {identity.bytes_per_token:g} bytes/token"),
        ("left out", f"{100 * cache.tail_mass:.3f} % of the teacher's probability"),
        ("error of it", f"{cache.tail_information:.5f} nats/token to a student that spreads the rest evenly"),
        ("took", format_seconds(seconds)),
        ("next", f"{PROGRAM} train CONFIG --config.distill.cache={quote(str(cache.folder))}"),
    ]
