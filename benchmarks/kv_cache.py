"""What bits of the key-value cache buy: tokens/s, memory, the largest batch that fits, and what they cost in nats.

Three parts, each for every kind of cache. Speed: tokens of a batch after a context of a given length, drawn greedily in
one program on the device, for each way to attend; the cache is zeros, which take as long to read as others. Largest
batch, for the first way and the shortest context: the compiler's own count of memory is a line in the batch, so two
compilations predict the batch that fills the device, and running it, smaller by 3 % until it runs, proves it. Nats: a
text is read in pieces through the cache, and the loss at each position is compared with that of the first kind.

Command: python -m benchmarks.kv_cache --shape smollm2-135m -o docs/results/kv_cache_135m_h100.json
  with losses: add --model HuggingFaceTB/SmolLM2-135M --tokens smollm2_wikitext2_valid.npy
Hardware: one GPU; on a CPU give --attentions products, since the kernel is only interpreted there; the batch is then
  filled up to --memory-gb of what the compiler counts, and not run.
Time: 3 to 5 seconds a line of speeds, most of it compilation, some 15 a largest batch, 5 a kind of cache for losses.
Expected: int4 at a third of bfloat16's bytes or less, and three times its batch or more; see docs/generation.md.
"""

import argparse
import dataclasses
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine, peak_memory
from benchmarks.record import write_record
from benchmarks.shapes import SHAPES
from lowbit.generation import CACHE_KINDS, Decoder, Sampling, Weights, bytes_per_token, cache_kind, from_params, loop
from lowbit.generation.cache import KVCache
from lowbit.generation.step_attention import METHODS, chosen_method
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import pretrained
from lowbit.pallas import kernel_runs_here
from lowbit.tree import unflatten

GREEDY = Sampling()
KINDS = ("bfloat16", "int8", "int8_minmax", "int4", "int4_minmax")
SHRINK = 0.97
"""What a batch is multiplied by as long as it does not run."""
SCORED_TOKENS = 2048
"""Tokens of all texts in one pass of the losses: bounds their logits."""
BUCKETS = (0, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
"""Positions between which losses are averaged."""


class Run(NamedTuple):
    """One size of one program.

    Attributes:
      decoder: of the kind of cache.
      batch: sequences.
      length: tokens before those that are drawn.
      new: tokens drawn.
    """

    decoder: Decoder
    batch: int
    length: int
    new: int


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the model that is timed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of all but the cache")
    parser.add_argument("--caches", nargs="+", choices=CACHE_KINDS, default=list(KINDS))
    parser.add_argument("--attentions", nargs="+", choices=METHODS, default=["kernel", "products"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 16384], help="tokens of the contexts")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64], help="sequences")
    parser.add_argument("--new", type=int, default=64, help="tokens drawn after each context")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each")
    parser.add_argument("--memory-gb", type=float, help="of the device (default: what it states)")
    parser.add_argument("--model", metavar="NAME", help="pretrained model whose losses are compared")
    parser.add_argument("--tokens", metavar="FILE", help=".npy of its tokens")
    parser.add_argument("--texts", type=int, default=8, help="sequences of tokens that are scored")
    parser.add_argument("--text-length", type=int, default=4096, help="tokens of each")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    options = parser.parse_args(argv)
    if (options.model is None) != (options.tokens is None):
        parser.error("--model and --tokens go together")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    shape = SHAPES[options.shape]
    longest = max(options.lengths) + options.new
    cfg = dataclasses.replace(shape, max_positions=max(shape.max_positions, longest))
    weights = random_weights(cfg, options.dtype, options.seed)
    memory = options.memory_gb * 1e9 if options.memory_gb else _device_memory()
    speeds, largest = [], []
    for length, attention, name in itertools.product(options.lengths, options.attentions, options.caches):
        kind = cache_kind(name)
        method = chosen_method(attention, cfg, kind, options.dtype)
        decoder = Decoder(cfg, options.dtype, kind, "float32", attention=method, unrolled=kernel_runs_here())
        setting = {"attention": attention, "cache": name}
        for batch in options.batches:
            run = Run(decoder, batch, length, options.new)
            speeds.append(setting | timed(run, weights, options.repeats))
            print(json.dumps(speeds[-1]), file=sys.stderr, flush=True)
        if memory is not None and attention == options.attentions[0] and length == min(options.lengths):
            found = largest_batch(Run(decoder, 1, length, options.new), weights, memory)
            largest.append(setting | {"length": length, **found})
            print(json.dumps(largest[-1]), file=sys.stderr, flush=True)
    return {
        "benchmark": "kv_cache",
        "command": "python -m benchmarks.kv_cache " + shlex.join(options.argv),
        **machine(options.seed),
        "shape": options.shape,
        "dtype": options.dtype,
        "weight_bytes": weights.nbytes,
        "device_bytes": memory,
        "bytes_per_token": {name: bytes_per_token(cfg, cache_kind(name)) for name in options.caches},
        "speed": speeds,
        "largest_batch": largest,
        "losses": None if options.model is None else losses(options),
    }


def random_weights(cfg: LlamaConfig, dtype: str, seed: int) -> Weights:
    """Returns normal weights of a small deviation, made on the device."""
    keys = iter(jax.random.split(jax.random.key(seed), len(param_shapes(cfg))))
    flat = {path: 0.02 * jax.random.normal(next(keys), shape, jnp.float32) for path, shape in param_shapes(cfg).items()}
    return from_params(unflatten(flat), dtype)


def timed(run: Run, weights: Weights, repeats: int) -> dict[str, Any]:
    """Returns tokens/s and memory of one size; the error's name where it does not fit."""
    record = {"length": run.length, "batch": run.batch, "cache_bytes": _cache_bytes(run)}
    try:
        program = _compiled(run, weights)
        seconds = [_seconds(program, run, weights) for _ in range(repeats + 1)][1:]
    except jax.errors.JaxRuntimeError as error:
        return record | {"failed": str(error).partition(":")[0]}
    steps = run.new - 1  # the first token needs no pass
    return record | {
        "tokens_per_s": run.batch * steps / statistics.median(seconds),
        "ms_per_step": 1e3 * statistics.median(seconds) / steps,
        "seconds": seconds,
        "memory": _counted(program),
        "peak_bytes_so_far": peak_memory(),
    }


def largest_batch(run: Run, weights: Weights, memory: float) -> dict[str, Any]:
    """Returns the batch that fills the device, predicted from two compilations and, on a GPU, run."""
    few, many = 2, 8
    low, high = (_total(_counted(_compiled(run._replace(batch=batch), weights))) for batch in (few, many))
    per_sequence = (high - low) / (many - few)
    predicted = int((memory - low) / per_sequence) + few
    record: dict[str, Any] = {"predicted": predicted, "bytes_per_sequence": per_sequence, "ran": None}
    if jax.default_backend() == "cpu":
        return record
    batch = predicted
    while batch >= 1:
        trial = run._replace(batch=batch)
        program = _compiled(trial, weights)
        # What a large batch takes beside its cache may grow faster than what a small one does: a count is seconds, a
        # run that does not fit many of them.
        if (total := _total(_counted(program))) > memory:
            batch = min(batch - 1, int(batch * memory / total))
            continue
        try:
            _seconds(program, trial, weights)
        except jax.errors.JaxRuntimeError:
            batch = min(batch - 1, int(batch * SHRINK))
            continue
        return record | {"ran": batch}
    return record | {"ran": 0}


def losses(options: argparse.Namespace) -> dict[str, Any]:
    """Returns nats/token between positions, for every kind of cache, and their change against the first kind."""
    loaded = pretrained.load(options.model)
    if options.text_length > loaded.cfg.max_positions:
        raise SystemExit(
            f"--text-length {options.text_length} exceeds the model's {loaded.cfg.max_positions} positions"
        )
    tokens = np.load(options.tokens)[: options.texts * (options.text_length + 1)].astype(np.int32)
    tokens = tokens.reshape(options.texts, options.text_length + 1)
    weights = from_params(loaded.params, options.dtype)
    ends = [end for end in BUCKETS if end < options.text_length] + [options.text_length]
    by_cache = {}
    for name in options.caches:
        decoder = Decoder(loaded.cfg, options.dtype, cache_kind(name), "float32")
        by_cache[name] = text_losses(decoder, weights, tokens)
    first = by_cache[options.caches[0]]

    def change(nats: np.ndarray) -> dict[str, Any]:
        parts = [(nats - first)[:, a:b] for a, b in itertools.pairwise(ends)]
        texts = (nats - first).mean(axis=1)
        return {
            "nats": float(nats.mean()),
            "change": float(texts.mean()),
            "change_stderr": float(texts.std(ddof=1) / len(texts) ** 0.5) if len(texts) > 1 else None,
            "change_by_position": [float(part.mean()) for part in parts],
        }

    return {
        "model": options.model,
        "texts": options.texts,
        "length": options.text_length,
        "positions": ends,
        "caches": {name: change(nats) for name, nats in by_cache.items()},
    }


def text_losses(decoder: Decoder, weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Returns nats f64[b t] of tokens i32[b t+1], each predicted from a cache that holds all before it."""
    count, length = len(tokens), tokens.shape[1] - 1
    piece = next(n for n in range(min(length, max(1, SCORED_TOKENS // count)), 0, -1) if length % n == 0)
    cache = loop.start(decoder, jnp.zeros(count, jnp.int32), length)
    parts = []
    for begin in range(0, length, piece):
        inputs, targets = (jnp.asarray(tokens[:, i : i + piece]) for i in (begin, begin + 1))
        nats, cache = loop.score(decoder, weights, inputs, targets, cache)
        parts.append(np.asarray(nats, np.float64))
    return np.concatenate(parts, axis=1)


def _arguments(run: Run) -> tuple[jax.Array, KVCache, loop.Draws]:
    """Logits, a cache that claims to hold the context, and draws that never stop."""
    cache = loop.start(run.decoder, jnp.zeros(run.batch, jnp.int32), run.length + run.new)
    filled = cache.advance(run.length)
    logits = jnp.zeros((run.batch, run.decoder.cfg.vocab_size), jnp.float32)
    return logits, filled, loop.Draws(jnp.zeros(run.batch, jnp.uint32), jnp.zeros(0, jnp.int32))


def _compiled(run: Run, weights: Weights) -> Any:
    """The program of one size, compiled without allocating anything."""
    logits, cache, draws = jax.eval_shape(lambda: _arguments(run))
    return loop.generate.lower(run.decoder, GREEDY, run.new, weights, logits, cache, draws).compile()


def _seconds(program: Any, run: Run, weights: Weights) -> float:
    logits, cache, draws = jax.block_until_ready(_arguments(run))
    began = time.perf_counter()
    jax.block_until_ready(program(weights, logits, cache, draws))
    return time.perf_counter() - began


def _counted(program: Any) -> dict[str, int]:
    """What the compiler says a program takes."""
    counted = program.memory_analysis()
    return {
        "arguments": counted.argument_size_in_bytes,
        "outputs": counted.output_size_in_bytes,
        "aliased": counted.alias_size_in_bytes,
        "temporary": counted.temp_size_in_bytes,
    }


def _total(memory: dict[str, int]) -> int:
    return memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporary"]


def _cache_bytes(run: Run) -> int:
    return run.batch * (run.length + run.new) * bytes_per_token(run.decoder.cfg, run.decoder.cache)


def _device_memory() -> int | None:
    """Bytes that jax may take on the device; None where it does not say."""
    stated = jax.devices()[0].memory_stats()
    return None if stated is None else int(stated["bytes_limit"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    options = parse_arguments(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    record = measure(options)
    write_record(record, options.output)


if __name__ == "__main__":
    main()
