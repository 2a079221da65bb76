"""How the work of a product is cut: what each program of the grid computes, and which cut was fastest where.

The table `tiles_h100.json` is for an H100: what limits the kernel changes with width and tokens, from memory to
unpacking to tensor cores, and no formula was found. For one token at 1 to 4 bits it holds the fastest of all
candidates, as `benchmarks.gpu_tiles` timed them. For more tokens that search is still to run: there it holds one tile
for each number of tokens, and that of more tokens where this was faster.
"""

import functools
import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

from lowbit.pallas.weight import GpuWeight

MAX_TOKENS = 64
"""Most tokens of the kernel. From there on the weights are decoded once, and a plain matrix product is at its best."""
GEMV_TOKENS = 0
"""Most tokens of the kernel without tensor cores."""
COLUMNS = 8
"""Fewest columns of a tile: what one instruction of the tensor cores multiplies."""
WIDEST = 16
"""Most columns that slices fill up."""
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
    """

    rows: int
    words: int
    warps: int


class Measured(NamedTuple):
    """A row of the table: the fastest tile of one product."""

    bits: int
    tokens: int
    n: int
    k: int
    tile: Tile


def power_of_two(number: int) -> int:
    """Returns the smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


def tile_for(w: GpuWeight, tokens: int) -> Tile:
    """Returns the tile of the most similar product in the table, fitted to this one.

    A number of tokens that the table lacks takes the tile of a larger one, which does all that and more in a time that
    is known; that of a smaller one says nothing about it.
    """
    tokens = power_of_two(tokens)
    wide_enough = [row for row in table() if row.tokens >= min(tokens, MAX_TOKENS)]

    def distance(row: Measured) -> float:
        wider = abs(math.log2(row.tokens / tokens)) + 10 * (row.bits != w.bits)
        return wider + abs(math.log2(row.n / w.n)) + abs(math.log2(row.k / w.k))

    return fitted(min(wide_enough, key=distance).tile, w.blocks, tokens)


def gemv_tile_for(w: GpuWeight) -> GemvTile:
    """Returns the tile of the kernel for few tokens: each thread loads 16 bytes of every output at a time."""
    words = min(max(power_of_two(w.blocks * w.span // 2), 128), 512)
    return GemvTile(8, words, words // 128)


def fitted(tile: Tile, blocks: int, tokens: int) -> Tile:
    """Returns the tile with no more slices and splits than blocks and tokens allow, and as many rows times slices."""
    slices = math.gcd(tile.slices, blocks, max(1, WIDEST // tokens))
    rows = tile.rows * tile.slices // slices
    return tile._replace(rows=rows, slices=slices, splits=math.gcd(tile.splits, blocks // slices))


@functools.cache
def table() -> tuple[Measured, ...]:
    """Returns what was measured."""
    text = resources.files("lowbit.pallas").joinpath(TABLE).read_text(encoding="utf-8")
    rows = json.loads(text)["tiles"]
    return tuple(Measured(bits, tokens, n, k, Tile(*tile)) for bits, tokens, n, k, *tile in rows)


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
