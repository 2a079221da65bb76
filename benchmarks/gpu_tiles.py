"""Which tile of the GPU's kernels is fastest for each width, shape and number of tokens, for `lowbit.pallas.tiles`.

Every candidate of `tiles.candidates` and, for few tokens, of `tiles.gemv_candidates` and `tiles.cuda_candidates` is
compared with the portable product, with 8-bit activations too where the kernel takes them, and timed inside one
program over weights larger than the cache; of each kernel those that came near the best a few times more, in turns.
Widths are independent: several processes, each with a GPU of its own, share the work, and `--merge` puts together what
they wrote.

Command: python -m benchmarks.gpu_tiles --bits 2 -o tiles_2.json
  then: python -m benchmarks.gpu_tiles --merge $TABLE tiles_*.json -o $TABLE
Hardware: an H100; three to six minutes a width with copies of 256 MB, not timed since they are of 2 GB.
Expected: the table, lowbit/pallas/tiles_h100.json. With --known the kernels in Pallas take part with the tiles alone
that the table has for a product: a minute a width.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp

from lowbit import cuda
from lowbit.bench.gpu import GpuPlan
from lowbit.bench.gpu_products import GpuProduct, Matrices, Program
from lowbit.generation.packed import quantize_activations
from lowbit.pallas import GpuWeight, matmul, matmul_int8
from lowbit.pallas.tiles import (
    GEMV_TOKENS,
    AnyTile,
    CudaTile,
    GemvTile,
    Measured,
    Tile,
    candidates,
    cuda_candidates,
    cuda_shape,
    gemv_candidates,
    gemv_tile_for,
    measured,
    tile_for,
)

PRODUCT = Measured._fields[:4]
COMPILERS = 12
TOKENS = (1, 64, 16, 32, 8, 4)
"""The most important first: there may be no time for all."""
FINALISTS = 4
MODEL_SHAPES = ((2048, 2048), (8192, 2048))
"""(k, n) of smaller matrices, such as those of a model of 1 B weights; for one token, which is when they matter."""
WRONG = 1e-4
"""Of the largest result: far above what rounding explains, far below what a wrong code changes."""


def fastest(case: GpuProduct, tokens: int, repeats: int, known: bool) -> dict[AnyTile, float]:
    """Returns the best tile of each kernel and its seconds; of kernels that need no `Tile` only the fastest one.

    Tiles that cannot be compiled, for want of shared memory, are left out.
    """
    matrices = Matrices(case)
    tiles = list(_tiles(matrices.weights[0], tokens, known))
    with ThreadPoolExecutor(COMPILERS) as pool:
        first = dict(zip(tiles, pool.map(lambda tile: _tried(matrices, tokens, tile), tiles), strict=True))
    programs = {tile: program for tile, program in first.items() if program is not None}
    once = {tile: program.seconds() for tile, program in programs.items()}
    near = [
        tile
        for kernel in (Tile, GemvTile, CudaTile)
        for tile in sorted((tile for tile in once if isinstance(tile, kernel)), key=lambda tile: once[tile])[:FINALISTS]
    ]
    times: dict[AnyTile, list[float]] = {tile: [] for tile in near}
    for _ in range(repeats):
        for tile in near:
            times[tile].append(programs[tile].seconds())
    medians = {tile: statistics.median(times[tile]) for tile in near}
    ranked = sorted(near, key=lambda tile: medians[tile])
    won = ranked[0], next(tile for tile in ranked if isinstance(tile, Tile))
    return {tile: medians[tile] for tile in won}


def _tiles(w: GpuWeight, tokens: int, known: bool) -> Iterator[AnyTile]:
    if known:
        gemv = gemv_tile_for(w, tokens)
        yield from (tile_for(w, tokens), *([] if gemv is None else [gemv]))
    else:
        yield from candidates(w.blocks, w.n, tokens)
        if tokens <= GEMV_TOKENS:
            yield from gemv_candidates(w.blocks * w.span // 2)
    shape = cuda_shape(w, tokens)
    if shape is not None and cuda.available():
        yield from cuda_candidates(shape)


def _tried(matrices: Matrices, tokens: int, tile: AnyTile) -> Program | None:
    program = matrices.program(tokens, tile)
    try:
        if not _right(matrices, tokens, tile):
            print(f"{matrices.case}, {tokens} tokens: {tile} is WRONG", file=sys.stderr)
            return None
        program.seconds()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        print(f"{matrices.case}, {tokens} tokens: {tile}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
        return None
    return program


def _right(matrices: Matrices, tokens: int, tile: AnyTile) -> bool:
    """Whether a tile computes what XLA does, and exactly so with 8-bit activations."""
    w = matrices.weights[0]
    x = jax.random.normal(jax.random.key(1), (tokens, w.k), jnp.bfloat16)
    expected = matmul(x, w, "xla")
    near = jnp.max(jnp.abs(matmul(x, w, tile=tile) - expected)) < WRONG * jnp.max(jnp.abs(expected))
    if not isinstance(tile, Tile):
        return bool(near)
    codes, scale = quantize_activations(x)
    return bool(near & jnp.all(matmul_int8(codes, scale, w, tile=tile) == matmul_int8(codes, scale, w, "xla")))


def write_table(device: str, rows: Sequence[Measured], output: Path) -> None:
    """Writes the tables of all kernels, a line a row."""

    def table(kernel: type[AnyTile]) -> str:
        own = sorted([*row[:4], *row.tile] for row in rows if isinstance(row.tile, kernel))
        fields = json.dumps([*PRODUCT, *kernel._fields])
        return f'"fields": {fields}, "tiles": [\n' + ",\n".join(" " + json.dumps(row) for row in own) + "\n]"

    others = ",\n".join(f'"{name}": {{{table(kernel)}}}' for name, kernel in (("gemv", GemvTile), ("cuda", CudaTile)))
    text = f'{{"device": {json.dumps(device)}, {table(Tile)},\n{others}}}\n'
    output.write_text(text, encoding="utf-8")


def merge(files: Sequence[str], output: Path) -> None:
    """Puts tables together; what a later one says of a product takes the place of what earlier ones say."""
    tables = [json.loads(Path(name).read_text(encoding="utf-8")) for name in files]
    rows: dict[tuple[int, ...], list[Measured]] = {}
    for table in tables:
        for product, own in itertools.groupby(sorted(measured(table), key=_product), key=_product):
            rows[product] = list(own)
    write_table(tables[-1]["device"], list(itertools.chain(*rows.values())), output)


def _product(row: Measured) -> tuple[int, ...]:
    return row.bits, row.tokens, row.n, row.k


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", choices=(1, 2, 3, 4, 8), default=[1, 2, 3, 4, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="powers of two")
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="of products")
    parser.add_argument("--known", action="store_true", help="search the tiles of the CUDA kernel alone")
    parser.add_argument("--repeats", type=int, default=5, help="timings of those that came near the best")
    parser.add_argument("--limit", type=float, default=240, help="seconds after which no other product is begun")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="tables to put together, in place of timings")
    parser.add_argument("-o", "--output", metavar="FILE", required=True)
    options = parser.parse_args(argv)
    if options.merge:
        merge(options.merge, Path(options.output))
        return
    shapes = None
    if options.shapes:
        shapes = tuple((int(k), int(n)) for n, _, k in (shape.partition("x") for shape in options.shapes))
    began, rows = time.perf_counter(), list[Measured]()
    for tokens in options.tokens:
        for bits in options.bits:
            for k, n in shapes or GpuPlan().shapes + (MODEL_SHAPES if tokens == 1 else ()):
                if time.perf_counter() - began > options.limit:
                    continue
                for tile, seconds in fastest(GpuProduct(k, n, bits), tokens, options.repeats, options.known).items():
                    rows.append(Measured(bits, tokens, n, k, tile))
                    print(f"{bits} bits, {tokens} tokens, {n} x {k}: {1e6 * seconds:.2f} us, {tile}", file=sys.stderr)
                write_table(jax.devices()[0].device_kind, rows, Path(options.output))


if __name__ == "__main__":
    main()
