"""How fast a model writes its own training text: time a step for each way to attend, cache and batch; what is kept.

Two parts. Steps: one program that writes a few tokens at the end of long texts, for every way to attend, kind of cache
and batch; all slots of the cache are in use, and hold zeros, which take as long to read as others. Waves: with --model,
the whole of `synthesize` in the setting whose steps made the most tokens a second, wave by wave: tokens written and
kept, what the filters left out, seconds of the teacher and of all. The first wave compiles.

Command: python -m benchmarks.synthesis --model SmolLM2-135M-Instruct.Q4_1.gguf -o docs/results/synthesis_135m_h100.json
Hardware: one GPU; --shape tiny with small numbers runs on a CPU.
Time: 5 to 10 seconds a setting; a wave of 2,048 texts of 1,024 tokens in 10, the first in 20.
Aim: 50,000 kept tokens/s or more on an H100, which the kernel reaches: see docs/synthesis.md.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kv_cache import random_weights
from benchmarks.machine import machine, peak_memory
from benchmarks.record import write_record
from benchmarks.shapes import SHAPES
from lowbit.data import TextTokenizer
from lowbit.generation import CACHE_KINDS, Decoder, Generator, Sampling, Weights, bytes_per_token, cache_kind
from lowbit.generation.step_attention import METHODS, chosen_method
from lowbit.models import pretrained
from lowbit.synthesis import Filters, Progress, Recipe, synthesize
from lowbit.synthesis.recipe import texts
from lowbit.synthesis.waves import Draws, Wave, advance, begin, make_teacher

NOTHING: dict[str, Any] = {"new": 0, "made": 0, "texts": 0, "seconds": 0.0, "dropped": {}}
"""What `Progress` counts before the first wave."""


class _EnoughError(Exception):
    """Ends a job that would go on."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the model whose steps are timed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of all but the cache")
    parser.add_argument("--attentions", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--caches", nargs="+", choices=CACHE_KINDS, default=["bfloat16", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1024, 2048], help="texts side by side")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a text")
    parser.add_argument("--top-k", type=int, default=50, help="tokens that are drawn among")
    parser.add_argument("--steps", type=int, default=32, help="tokens a timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each setting")
    parser.add_argument("--model", metavar="NAME", help="pretrained model that writes whole waves")
    parser.add_argument("--waves", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    cfg = SHAPES[options.shape]
    weights = random_weights(cfg, options.dtype, options.seed)
    steps = []
    for attention, cache, batch in itertools.product(options.attentions, options.caches, options.batches):
        kind = cache_kind(cache)
        method = chosen_method(attention, cfg, kind, options.dtype)
        decoder = Decoder(cfg, options.dtype, kind, "float32", attention=method)
        setting = {"attention": attention, "cache": cache, "batch": batch}
        steps.append(setting | timed(decoder, weights, batch, options))
        print(json.dumps(steps[-1]), file=sys.stderr, flush=True)
    best = max((row for row in steps if "failed" not in row), key=lambda row: float(row["tokens_per_s"]))
    return {
        "benchmark": "synthesis",
        "command": "python -m benchmarks.synthesis " + shlex.join(options.argv),
        **machine(options.seed),
        "shape": options.shape,
        "dtype": options.dtype,
        "length": options.length,
        "top_k": options.top_k,
        "weight_bytes": weights.nbytes,
        "bytes_per_token": {name: bytes_per_token(cfg, cache_kind(name)) for name in options.caches},
        "steps": steps,
        "waves": None if options.model is None else waves(options, best),
    }


def timed(decoder: Decoder, weights: Weights, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns milliseconds a step at the end of texts, with full caches; the error's name where it does not run."""
    recipe = Recipe(tokens=1, seed=options.seed, length=options.length, sampling=_sampling(options), batch=batch)
    teacher = make_teacher(decoder, weights, np.zeros(decoder.cfg.vocab_size, bool), jax.devices()[:1])
    at = options.length - options.steps
    some = texts(recipe, range(decoder.cfg.vocab_size), 0, batch)
    draws = jax.tree.map(jnp.asarray, Draws(some.seeds, some.greedy))
    try:
        wave = begin(decoder, teacher.mesh, options.length, options.length, jnp.asarray(some.starts))
        seconds = []
        for _ in range(options.repeats + 1):
            wave = jax.block_until_ready(_at(wave, at))
            began = time.perf_counter()
            wave = advance(
                decoder, recipe.sampling, teacher.mesh, at, options.length, False, teacher.weights, teacher.special,
                wave, draws,
            )  # fmt: skip
            jax.block_until_ready(wave)
            seconds.append(time.perf_counter() - began)
    except jax.errors.JaxRuntimeError as error:
        return {"failed": str(error)[:300]}
    step = statistics.median(seconds[1:]) / options.steps
    return {
        "ms_per_step": 1e3 * step,
        "tokens_per_s": batch / step,
        "first_s": seconds[0],
        "seconds": seconds[1:],
        "cache_bytes": wave.cache.nbytes,
        "read_bytes_per_s": (wave.cache.nbytes + weights.nbytes) / step,
        "peak_bytes_so_far": peak_memory(),
    }


def waves(options: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """Returns what a model wrote and what of it was kept, wave by wave, in the setting of some steps."""
    loaded = pretrained.load(options.model)
    tokenizer = TextTokenizer.load(loaded.tokenizer_files, vocab_size=loaded.cfg.vocab_size)
    generator = Generator.from_params(
        loaded.cfg, loaded.params, dtype=options.dtype, cache=setting["cache"], attention=setting["attention"]
    )
    recipe = Recipe(
        tokens=10**12, seed=options.seed, length=options.length, sampling=_sampling(options), batch=setting["batch"]
    )
    found: list[dict[str, Any]] = []
    clock = [time.perf_counter()]

    def report(progress: Progress) -> None:
        clock.append(time.perf_counter())
        found.append({"wall_s": clock[-1] - clock[-2], **progress._asdict(), "peak_bytes_so_far": peak_memory()})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if len(found) == options.waves:
            raise _EnoughError

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        synthesize(
            generator, tokenizer, Path(folder) / "out", recipe, Filters(), teacher={"teacher": options.model},
            devices=jax.devices()[:1], report=report,
        )  # fmt: skip
    rows = [_difference(before, after) for before, after in zip([NOTHING, *found], found, strict=False)]
    return {"model": options.model, "setting": setting, "filters": dataclasses.asdict(Filters()), "waves": rows}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """One wave of counts that add up; `new` and `made` per second of all its time."""
    row = {name: after[name] - before[name] for name in ("new", "made", "texts")}
    dropped = {reason: count - before["dropped"].get(reason, 0) for reason, count in after["dropped"].items()}
    teacher_s = after["seconds"] - before["seconds"]
    return {
        "texts": row["texts"],
        "dropped": dropped,
        "made_tokens": row["made"],
        "kept_tokens": row["new"],
        "wall_s": after["wall_s"],
        "teacher_s": teacher_s,
        "made_tokens_per_s": row["made"] / after["wall_s"],
        "kept_tokens_per_s": row["new"] / after["wall_s"],
        "peak_bytes_so_far": after["peak_bytes_so_far"],
    }


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(1.0, top_k=options.top_k)


def _at(wave: Wave, tokens: int) -> Wave:
    """The wave as if every text had this many tokens."""
    length = jax.device_put(jnp.int32(tokens - 1), wave.cache.length.sharding)
    return wave._replace(cache=dataclasses.replace(wave.cache, length=length))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    options = parse_arguments(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    write_record(measure(options), options.output)


if __name__ == "__main__":
    main()
