"""Which tile of the kernel of attention is fastest, for `lowbit.generation.step_attention`.

Every tile is compared with products and timed in one program over the layers of a cache, for each kind of cache and
size of batch; for the fastest, slots are then cut into fewer and more pieces. Beside them stands what products take.

Command: python -m benchmarks.attention_tiles -o tiles.json
Hardware: an H100; two to three minutes, most of it compilation.
Expected: the tiles that `step_attention` takes, near the first of each case.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.generation import CACHE_KINDS, cache_kind
from lowbit.generation.attention import attention
from lowbit.generation.cache import empty_cache
from lowbit.generation.step_attention import Tile, by_kernel
from lowbit.generation.stored import Stored
from lowbit.llama import LlamaConfig

COMPILERS = 12
TILES = [Tile(*sizes) for sizes in itertools.product((32, 64, 128), (1, 2, 4), (2, 3, 4))]
SPLITS = (1, 2, 4, 8, 16, 32, 64, 128)
WRONG = 2.0**-5
"""Of the largest result: some roundings to bfloat16; a wrong code or slot changes more."""


class Case(NamedTuple):
    """What a token attends to: queries bf16[b kv_heads g h], and the whole cache, all slots in use."""

    queries: Any
    keys: Stored
    values: Stored
    start: Any

    @property
    def capacity(self) -> int:
        """Slots."""
        return int(self.keys.codes.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.keys, self.values)))


def make_case(name: str, batch: int, length: int, layers: int, seed: int) -> Case:
    """Returns random codes or floats with heads as SmolLM2-135M has them, by one key for each array."""
    cfg = LlamaConfig(
        vocab_size=8, hidden_size=576, intermediate_size=8, num_layers=layers, num_heads=9, num_kv_heads=3, head_dim=64
    )
    empty = jax.eval_shape(lambda: empty_cache(cfg, cache_kind(name), jnp.zeros(batch, jnp.int32), length))
    keys = iter(jax.random.split(jax.random.key(seed), 3))

    def random(stored: Stored, key: jax.Array) -> Stored:
        codes = jax.random.bits(key, stored.codes.shape, jnp.uint16)
        if stored.scale is None:
            # Between 1 and 2 in size, of either sign.
            bits = codes & jnp.uint16(0x807F) | jnp.uint16(0x3F80)
            floats = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
            return Stored(floats, None, None, stored.kind, stored.width)
        scale = jnp.full(stored.scale.shape, 2.0 ** (1 - stored.kind.bits), jnp.float16)
        zero = None if stored.zero is None else jnp.full(stored.zero.shape, 7, jnp.float16)
        words = jax.lax.bitcast_convert_type(codes, jnp.int16)
        return Stored(words, scale, zero, stored.kind, stored.width)

    queries = jax.random.normal(next(keys), (batch, 3, 3, 64), jnp.bfloat16)
    own, values = (jax.jit(random)(stored, next(keys)) for stored in (empty.keys, empty.values))
    return Case(queries, own, values, jnp.zeros(batch, jnp.int32))


def by_products(case: Case, queries: jax.Array, layer: jax.Array) -> jax.Array:
    """What the kernel has to equal."""
    b, kv_heads, g, h = queries.shape
    visible = jnp.ones((b, 1, case.capacity), bool)
    keys, values = (stored.read(layer, queries.dtype) for stored in (case.keys, case.values))
    return attention(queries.reshape(b, 1, kv_heads * g, h), keys, values, visible).reshape(queries.shape)


def kernel(tile: Tile | None, splits: int | None, interpret: bool) -> Callable[..., jax.Array]:
    """Returns the kernel as `by_products` is called."""

    def attend(case: Case, queries: jax.Array, layer: jax.Array) -> jax.Array:
        where = case.keys, case.values, layer, case.start, jnp.int32(case.capacity)
        return by_kernel(queries, *where, tile=tile, splits=splits, interpret=interpret)

    return attend


def compiled(case: Case, attend: Callable[..., jax.Array]) -> Any:
    """Returns a program over all layers, each with queries of what the layer before mixed; None if there is none."""

    def layers(case: Case) -> jax.Array:
        def one(layer: jax.Array, queries: jax.Array) -> jax.Array:
            return attend(case, queries, layer)

        mixed: jax.Array = jax.lax.fori_loop(0, len(case.keys.codes), one, case.queries)
        return mixed

    try:
        return jax.jit(layers).lower(case).compile()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        print(str(error).splitlines()[0][:160], file=sys.stderr)
        return None


def seconds(program: Any, case: Case) -> float:
    """Returns what one run takes."""
    began = time.perf_counter()
    jax.block_until_ready(program(case))
    return time.perf_counter() - began


def timed(case: Case, ways: dict[tuple[Any, ...], Callable[..., jax.Array]], repeats: int) -> list[dict[str, Any]]:
    """Returns ways by their time, fastest first; those that are wrong say so."""
    with ThreadPoolExecutor(COMPILERS) as pool:
        programs = dict(zip(ways, pool.map(lambda way: compiled(case, way), ways.values()), strict=True))
    layer = jnp.int32(0)
    expected = jax.jit(by_products)(case, case.queries, layer).astype(jnp.float32)
    rows = []
    for name, program in programs.items():
        if program is None:
            continue
        got = jax.jit(ways[name])(case, case.queries, layer).astype(jnp.float32)
        error = float(jnp.max(jnp.abs(got - expected)) / jnp.max(jnp.abs(expected)))
        step = statistics.median([seconds(program, case) for _ in range(repeats + 1)][1:])
        rows.append(
            {
                "way": list(name),
                "us_a_layer": 1e6 * step / len(case.keys.codes),
                "bytes_per_s": case.nbytes / step,
                "error": error,
                "right": error < WRONG,
            }
        )
    return sorted(rows, key=lambda row: float(row["us_a_layer"]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    interpret = jax.default_backend() == "cpu"
    cases = []
    for name, size in itertools.product(options.caches, options.sizes):
        batch, length = map(int, size.split("x"))
        case = make_case(name, batch, length, options.layers, options.seed)
        ways: dict[tuple[Any, ...], Callable[..., jax.Array]] = {("products",): by_products}
        ways |= {("chosen",): kernel(None, None, interpret)}
        ways |= {(*tile, None): kernel(tile, None, interpret) for tile in TILES[: options.tiles]}
        rows = timed(case, ways, options.repeats)
        best = next((row["way"] for row in rows if len(row["way"]) > 1 and row["right"]), None)
        if best is not None:
            tile = Tile(*best[:3])
            cuts = [splits for splits in SPLITS if splits * tile.slots <= length]
            rows += timed(case, {(*tile, n): kernel(tile, n, interpret) for n in cuts}, options.repeats)
        cases.append({"cache": name, "batch": batch, "length": length, "ways": rows})
        for place, row in enumerate(rows):
            if place < 4 or len(row["way"]) == 1 or row["way"][-1] or not row["right"]:
                print(name, size, json.dumps(row), file=sys.stderr, flush=True)
    return {"benchmark": "attention_tiles", **machine(options.seed), "layers": options.layers, "cases": cases}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--caches",
        nargs="+",
        choices=[name for name, kind in CACHE_KINDS.items() if kind.bits <= 16],
        default=["bfloat16", "int8", "int4", "int4_minmax"],
        help="of numbers of up to 16 bits",
    )
    parser.add_argument("--sizes", nargs="+", metavar="BxT", default=["64x4096", "1x16384"], help="batches and slots")
    parser.add_argument("--layers", type=int, default=30, help="of the cache: more than the GPU's own cache holds")
    parser.add_argument("--tiles", type=int, default=len(TILES), help="how many are tried")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write; - or nothing prints it")
    options = parser.parse_args(argv)
    write_record(measure(options), options.output)


if __name__ == "__main__":
    main()
