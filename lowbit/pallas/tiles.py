"""How the work of a product is cut: what each program of the grid computes, and which cut was fastest where.

The table `tiles_h100.json` is for an H100: what limits the kernel changes with width and tokens, from memory to
unpacking to tensor cores, and no formula was found. For one token at 1 to 4 bits it holds the fastest of all
candidates, as `benchmarks.gpu_tiles` timed them. For more tokens that search is still to run: there it holds one tile
for each number of tokens, and that of more tokens where this was faster.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NamedTuple

import jax

from lowbit import cuda
from lowbit.cuda import CudaTile
from lowbit.pallas.weight import GpuWeight

MAX_TOKENS = 64
"""Most tokens of the kernel. From there on the weights are decoded once, and a plain matrix product is at its best."""
GEMV_TOKENS = 4
"""Most tokens that the kernel without tensor cores is tried with: its work grows with each of them."""
COLUMNS = 8
"""Fewest columns of a tile: what one instruction of the tensor cores multiplies."""
WIDEST = 16
"""Most columns that slices fill up."""
NORMED_BYTES = 10
"""That are read for an input whose norm is multiplied: of the stream, of what is added, and of the norm's scale."""
MOST_GROUPED = 2
"""Tokens of the CUDA kernel with groups."""
PIECES = (8 << 10, 16 << 10, 32 << 10)
"""Bytes of the codes of 16 outputs that come at once in the CUDA kernel, or so."""
MOST_NORMED_BYTES = 12 << 20
"""That blocks of threads may read of them in all, from the second-level cache: with 8 or 20 MiB models decode as fast,
or slower."""
TABLE = "tiles_h100.json"


class Tile(NamedTuple):
    """A program's part of a product, and what runs it.

    Attributes:
      rows: outputs.
      slices: blocks of inputs of each output that are multiplied side by side, as columns of one matrix product; a
        power of two that divides the blocks.
      warps: of 32 threads.
      stages: of the software pipeline that loads ahead.
      splits: programs that share the inputs of the same outputs; their results are added by XLA.
    """

    rows: int
    slices: int
    warps: int
    stages: int
    splits: int = 1


class GemvTile(NamedTuple):
    """The same of the kernel for few tokens.

    Attributes:
      rows: outputs; a power of two.
      words: 32-bit words of codes of each that are multiplied side by side; a power of two.
      warps: of 32 threads.
      ordered: whether loads keep their order, those of the weights first. The compiler would put these behind the
        rounding of activations, which takes fewer registers, and more time before memory has something to do.
    """

    rows: int
    words: int
    warps: int
    ordered: bool


AnyTile = Tile | GemvTile | CudaTile


class Measured(NamedTuple):
    """A row of one of the tables: the fastest tile of a kernel for one product."""

    bits: int
    tokens: int
    n: int
    k: int
    tile: AnyTile


def power_of_two(number: int) -> int:
    """Returns the smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


def tile_for(w: GpuWeight, tokens: int) -> Tile:
    """Returns the tile of the most similar product in the table of the kernel with tensor cores, fitted to this one."""
    tile = min((row for row in table() if isinstance(row.tile, Tile)), key=_distance(w, tokens)).tile
    assert isinstance(tile, Tile)
    return fitted(tile, w.blocks, power_of_two(tokens))


def gemv_tile_for(w: GpuWeight, tokens: int) -> GemvTile | None:
    """Returns the tile of the kernel without them where it was faster for the most similar product, None elsewhere.

    Its table has those products alone that it won, all with one scale an output; for groups it was not timed.
    """
    if w.groups > 1:
        return None
    distance = _distance(w, tokens)
    rows = (row for row in table() if not isinstance(row.tile, CudaTile))
    tile = min(rows, key=lambda row: (distance(row), isinstance(row.tile, Tile))).tile
    return tile if isinstance(tile, GemvTile) else None


def cuda_tile_for(w: GpuWeight, tokens: int, gated: bool = False, eps: float | None = None) -> CudaTile | None:
    """Returns the tile of the CUDA kernel where it was faster than both for the most similar product, None elsewhere.

    Whether the kernel is available here is not asked. With groups that holds for two tokens: for more, whose sums are
    scaled one by one, the kernel with tensor cores is as fast. Gates and norms it makes activations of while codes are
    on their way, as good as for nothing; so it takes all whose bits it was timed with. But a norm is computed by every
    block of threads, each of which reads all that it is of: too many of them would take longer than a kernel for it.
    """
    shape = cuda_shape(w, tokens, gated, eps)
    if shape is None or (w.groups > 1 and tokens > MOST_GROUPED):
        return None
    rows = [row for row in table() if not shape.made or (isinstance(row.tile, CudaTile) and row.bits == w.bits)]
    if not rows:
        return None
    distance = _distance(w, tokens)
    tile = min(rows, key=lambda row: (distance(row), not isinstance(row.tile, CudaTile))).tile
    if not isinstance(tile, CudaTile):
        return None
    chunks = cuda.most_chunks(shape, math.gcd(tile.chunks, w.blocks))
    tile = tile._replace(chunks=chunks, warps=max(tile.warps, cuda.fewest_warps(shape)))
    if eps is not None and math.ceil(w.n / tile.rows) * w.k * NORMED_BYTES > MOST_NORMED_BYTES:
        return None
    while not cuda.fits(shape, tile) and tile.rows > cuda.TILE:
        tile = tile._replace(rows=tile.rows // 2 // cuda.TILE * cuda.TILE)
    return tile if cuda.fits(shape, tile) else None


def cuda_shape(w: GpuWeight, tokens: int, gated: bool = False, eps: float | None = None) -> cuda.Shape | None:
    """Returns what the CUDA kernel has to know of a product; None of one that it does not take.

    Of a stack it takes a layer that is known while the program is traced. What else there is to ask, `cuda.fits` knows.
    """
    if isinstance(w.layer, jax.Array) or tokens > cuda.MOST_TOKENS:
        return None
    levels = w.levels.first, w.levels.distance
    return cuda.Shape(tokens, w.k, w.n, w.groups, w.bits, w.span, w.blocks, *levels, gated, eps)


def gated_tile_for(w: GpuWeight) -> GemvTile | None:
    """Returns the tile of the kernel without tensor cores for one token, faster or not; None for bits never timed.

    What it takes longer than the other kernel, if it does, is less than a kernel for what it makes of gates.
    """
    rows = [row for row in table() if isinstance(row.tile, GemvTile) and row.bits == w.bits]
    if not rows:
        return None
    tile = min(rows, key=_distance(w, 1)).tile
    assert isinstance(tile, GemvTile)
    return tile


def _distance(w: GpuWeight, tokens: int) -> Callable[[Measured], float]:
    """How far a row of the table is from a product.

    A number of tokens that the table lacks takes the tile of a larger one, which does all that and more in a time that
    is known; that of a smaller one says nothing about it.
    """
    tokens = power_of_two(tokens)

    def distance(row: Measured) -> float:
        if row.tokens < min(tokens, MAX_TOKENS):
            return math.inf
        wider = abs(math.log2(row.tokens / tokens)) + 10 * (row.bits != w.bits)
        return wider + abs(math.log2(row.n / w.n)) + abs(math.log2(row.k / w.k))

    return distance


def fitted(tile: Tile, blocks: int, tokens: int) -> Tile:
    """Returns the tile with no more slices and splits than blocks and tokens allow, and as many rows times slices."""
    slices = math.gcd(tile.slices, blocks, max(1, WIDEST // tokens))
    rows = tile.rows * tile.slices // slices
    return tile._replace(rows=rows, slices=slices, splits=math.gcd(tile.splits, blocks // slices))


@functools.cache
def table() -> tuple[Measured, ...]:
    """Returns what was measured."""
    return measured(json.loads(resources.files("lowbit.pallas").joinpath(TABLE).read_text(encoding="utf-8")))


def measured(tables: Any) -> tuple[Measured, ...]:
    """Returns the rows of the tables of a file."""
    rows = [Measured(bits, tokens, n, k, Tile(*tile)) for bits, tokens, n, k, *tile in tables["tiles"]]
    for bits, tokens, n, k, *tile in tables["gemv"]["tiles"]:
        rows.append(Measured(bits, tokens, n, k, GemvTile(*tile)))
    for bits, tokens, n, k, *tile in tables["cuda"]["tiles"]:
        rows.append(Measured(bits, tokens, n, k, CudaTile(*tile)))
    return tuple(rows)


def candidates(blocks: int, n: int, tokens: int) -> Iterator[Tile]:
    """Yields the tiles that are worth a try: all that ever came near the fastest.

    Few tokens are a question of memory: small tiles, many of them, and as many slices as fill 8 or 16 columns, or fewer
    for shorter steps of a deeper pipeline. Many tokens are one of tensor cores, and of outputs that are enough for all
    multiprocessors.
    """
    if tokens <= COLUMNS:
        most = WIDEST // tokens
        found = {
            fitted(Tile(max(1, rows // slices), slices, warps, stages), blocks, tokens)
            for slices in {most >> halving for halving in range(4)} - {0}
            for rows, warps in ((32, 1), (32, 2), (64, 2), (64, 4), (128, 4))
            for stages in (2, 3, 4)
        }
    else:
        found = {
            fitted(Tile(rows, 1, warps, stages, splits), blocks, tokens)
            for rows, warps, stages in ((32, 2, 3), (64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 4, 3), (128, 8, 3))
            for splits in (1, 2, 4)
            if splits == 1 or n // rows < 300
        }
    yield from sorted(found)


def gemv_candidates(words: int) -> Iterator[GemvTile]:
    """Yields tiles worth a try for outputs of so many words: 2 or 4 words a thread of each of some outputs."""
    for rows in (4, 8, 16):
        for width, warps in ((128, 1), (128, 2), (256, 2), (256, 4), (512, 4), (512, 8), (1024, 8)):
            if width < 2 * words or width == 128:
                yield from (GemvTile(rows, width, warps, ordered) for ordered in (False, True))


def cuda_candidates(shape: cuda.Shape) -> Iterator[CudaTile]:
    """Yields tiles worth a try: few rows where there are few outputs, and pieces of codes neither long nor short."""
    divisors = [chunks for chunks in range(1, shape.blocks + 1) if shape.blocks % chunks == 0]
    wanted = [cuda.TILE * shape.padded * sum(shape.parts) / 8 / size for size in PIECES]
    some = {min(divisors, key=lambda chunks: abs(math.log(chunks / number))) for number in wanted}
    for rows in (16, 32, 64, 112, 224):
        for warps in (4, 8):
            for chunks in sorted(some):
                tile = CudaTile(rows, warps, chunks)
                if cuda.fits(shape, tile) and (rows == cuda.TILE or shape.outputs >= 64 * rows):
                    yield tile
