"""`synthesize`: training text from a model."""

import argparse
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import jax
import numpy as np

from lowbit import config as configs
from lowbit.cli.commands import PROGRAM
from lowbit.cli.generate_jax import cache_name
from lowbit.cli.job_bar import JobBar
from lowbit.cli.packed_file import open_model
from lowbit.cli.sources import kind_of
from lowbit.cli.tables import fields
from lowbit.cli.usage import UsageError
from lowbit.data import Manifest, TextTokenizer
from lowbit.export.packed import unpack_params
from lowbit.generation import Generator, Sampling
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, LlamaConfig
from lowbit.llama.activations import Ranges, from_meta
from lowbit.models import pretrained
from lowbit.report.table import format_seconds
from lowbit.synthesis import Filters, Progress, Recipe, synthesize
from lowbit.train.teacher import fingerprint
from lowbit.tree import flatten, unflatten
from lowbit.tree.paths import Tree


def run(arguments: argparse.Namespace) -> int:
    """Writes the texts, and prints what was kept and how to train on it."""
    on_cpu = jax.default_backend() == "cpu"
    recipe = Recipe(
        tokens=_count(arguments.tokens),
        seed=arguments.seed,
        length=arguments.length,
        greedy=_lengths(arguments.greedy),
        starts=arguments.starts,
        sampling=Sampling(arguments.temperature, arguments.top_k or None, arguments.top_p),
        batch=arguments.batch or (32 if on_cpu else 1024),
    )
    filters = Filters(
        arguments.min_tokens, arguments.max_repeated, arguments.max_compression, arguments.near_duplicates
    )
    cfg, params, files, rounding, ranges = _teacher(arguments.source)
    wanted = None if arguments.separator is None else configs.parse(arguments.separator, object, "--separator")
    tokenizer = TextTokenizer.load(files, vocab_size=cfg.vocab_size, separator=wanted)
    dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    cache = cache_name(arguments.kv_bits, rounding, dtype)
    teacher = {"teacher": arguments.source, "fingerprint": fingerprint(flatten(params))}
    attention = arguments.attention or "auto"
    generator = Generator.from_params(
        cfg, params, dtype=dtype, cache=cache, attention=attention, rounding=rounding, ranges=ranges
    )
    with contextlib.closing(_Bar()) as bar:
        manifest = synthesize(
            generator,
            tokenizer,
            Path(arguments.output).expanduser(),
            recipe,
            filters,
            teacher=teacher,
            shard_tokens=arguments.shard_tokens,
            report=bar.report,
        )
    print(_summary(arguments.output, manifest, bar))
    return 0


def _count(tokens: float) -> int:
    if not 1 <= tokens < float("inf"):
        raise UsageError(f"--tokens {tokens:g} is an empty generation", "ask for 1 token or more")
    return int(tokens)


def _lengths(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None:
        raise UsageError(f"--greedy {text} is no range of lengths", "write two numbers, such as 3-5")
    return int(found[1]), int(found[2] or found[1])


def _teacher(source: str) -> tuple[LlamaConfig, Tree, Mapping[str, bytes], ActivationRounding, Ranges]:
    """The weights that a source computes with, as floats: rounded ones are decoded once. How it rounds activations."""
    match kind_of(source):
        case "run":
            from lowbit.cli import quantized

            run = quantized.from_run(source)
            params = jax.tree.map(np.asarray, run.decoded())
            return run.cfg, params, run.tokenizer_files, run.rounding, run.ranges
        case "packed":
            packed, cfg = open_model(source)
            return cfg, unflatten(unpack_params(cfg, packed)), packed.tokenizer, *from_meta(packed.meta, cfg)
        case "pretrained":
            loaded = pretrained.load(source)
            return loaded.cfg, loaded.params, loaded.tokenizer_files, FLOAT_ACTIVATIONS, {}


class _Bar(JobBar):
    """Tokens kept of all that are wanted, how many a second, and the time left."""

    def __init__(self) -> None:
        super().__init__("token")
        self.last: Progress | None = None

    def report(self, progress: Progress) -> None:
        """Moves the bar."""
        self.last = progress
        done, found = min(progress.kept, progress.wanted), progress.kept - progress.new
        self.move(done, progress.wanted, found=found, speed=f"{progress.new / self.seconds:,.0f} kept tokens/s")


def _summary(folder: str, manifest: Manifest, bar: _Bar) -> str:
    source = manifest.sources[0]
    left_out = [f"{name.replace('_', ' ')} {count:,}" for name, count in source["dropped"].items()]
    rows = [
        (folder, f"{manifest.documents:,} texts, {manifest.tokens:,} tokens, shards: {len(manifest.shards):,}"),
        ("left out", f"of {source['texts']:,} texts: {', '.join(left_out)}"),
    ]
    if bar.last is not None:
        kept, made = (count / bar.seconds for count in (bar.last.new, bar.last.made))
        rows.append(("took", f"{format_seconds(bar.seconds)}, {kept:,.0f} kept tokens/s of {made:,.0f} written"))
    rows.append(("next", f"{PROGRAM} train CONFIG --config.data.train={quote(str(folder))}"))
    return fields(rows)
