"""How a step in one kernel is cut: its shape, the ring that codes come through, and what lies in shared memory."""

import math
from typing import NamedTuple

from lowbit.cuda import kernels
from lowbit.cuda.attention import AttentionShape, attention_chunk, attention_fits
from lowbit.cuda.product_shapes import (
    BARRIERS,
    DIGITS,
    MOST_INPUTS,
    TILE,
    Shape,
    cuts_groups_evenly,
    row_bytes,
    stride,
)

WARPS = 8
"""That multiply; one more has codes come."""
TEAM = 4
"""Of these share the inputs of a tile, while others have another one: there are fewer sums to add up than of all."""
COPIES = 2
"""Of what blocks write for all others, each of which half of them reads."""
SLOT_LIMITS = tuple(kib << 10 for kib in (40, 32, 24, 20, 16, 12, 10, 8, 6, 4))
"""Bytes of a slot of the ring that are tried: longer copies are fewer."""
SHORT = 512
"""Bytes of a whole row from which on it is copied by itself, into another bank than the next one."""
LONG = 768
"""Bytes of a part of a row that is worth a copy: 512 take as long."""
AHEAD = 96 << 10
"""Bytes on their way to each block that are enough: what memory delivers in the time of two or three parts."""
FEWEST_SLOTS, MANY_SLOTS = 4, 6
"""Of the ring: each team multiplies one."""
MOST_SLOTS = 64
PASS = 16
"""Tiles of a product whose sums are kept at once: of more, memory for them would be taken from the ring."""
PARTS = 5
"""Of a layer: four products and attention."""
FEW_SLOTS, MORE_SLOTS = 128, 256
"""Of the cache, that a block reads by itself: blocks that share more have to exchange what they found. As many as the
second where it then has fewer queries."""
MOST_SPLITS = 16
"""Blocks that share a key-value head."""


class StepShape(NamedTuple):
    """Everything static.

    Attributes:
      layers: of the model.
      qkv: queries, keys and values, joined.
      out: the product behind attention.
      up: gates and what they let pass, joined.
      down: the product behind them.
      attention: of one sequence.
      eps: of norms.
    """

    layers: int
    qkv: Shape
    out: Shape
    up: Shape
    down: Shape
    attention: AttentionShape
    eps: float

    @property
    def products(self) -> dict[str, Shape]:
        """Matrices of a layer, by what `step.cu` calls them."""
        return {"QKV": self.qkv, "OUT": self.out, "UP": self.up, "DOWN": self.down}


class StepTile(NamedTuple):
    """How the work is cut.

    Attributes:
      blocks: of threads, all of which are there at once.
      queries: of a key-value head that a block attends with.
      reads: chunks of the cache that each of its warps reads before other blocks share the slots.
      splits: blocks that do, at most.
      chunks: parts that the inputs of each product arrive in.
      slot: bytes of a slot of the ring of codes.
      ring: how many slots it has.
    """

    blocks: int
    queries: int
    reads: int
    splits: int
    chunks: tuple[int, ...]
    slot: int
    ring: int


def step_tile(shape: StepShape, blocks: int) -> StepTile | None:
    """Returns a tile for a GPU that can have so many blocks at once; None for a model that the kernel does not take."""
    a = shape.attention
    if a.sequences != 1 or not attention_fits(a) or blocks < a.heads or not _queries(a):
        return None
    products = shape.products
    if any(p.made or p.tokens != 1 or p.inputs % 8 or p.inputs > MOST_INPUTS for p in products.values()):
        return None
    if any(p.outputs % (2 * TILE if name == "UP" else TILE) for name, p in products.items()):
        return None
    tiles = [found for limit in SLOT_LIMITS if (found := _tile_of(shape, blocks, limit)) is not None]
    long = [tile for tile in tiles if _copies_are_long(shape, tile)]
    tiles = [tile for tile in long if tile.ring >= MANY_SLOTS] or long or tiles
    enough = 0.85 * min(AHEAD, max((_bytes_ahead(shape, tile) for tile in tiles), default=0))
    return next((tile for tile in tiles if _bytes_ahead(shape, tile) >= enough), None)


def _queries(shape: AttentionShape) -> list[int]:
    """How many queries of a head a block can attend with: whole warps have their numbers."""
    return [q for q in range(1, shape.group + 1) if shape.group % q == q * shape.width % 32 == 0]


def _tile_of(shape: StepShape, blocks: int, limit: int) -> StepTile | None:
    """A tile whose slots have no more bytes than a limit, if there is one, and as many slots as fit."""
    chunks = [fewest_chunks(p, limit) for p in shape.products.values()]
    known = tuple(count for count in chunks if count is not None)
    if len(known) < len(chunks):
        return None
    slot = max(piece_bytes(p, count) for p, count in zip(shape.products.values(), known, strict=True))
    tile = StepTile(blocks, *_attention_of(shape.attention, blocks), known, slot, 0)
    ring = min(MOST_SLOTS, (kernels.SHARED - shared_bytes(shape, tile)) // (slot + BARRIERS))
    return tile._replace(ring=ring) if ring >= FEWEST_SLOTS else None


def _attention_of(shape: AttentionShape, blocks: int) -> tuple[int, int, int]:
    """How many queries a block attends with, reads of the cache of a warp, and blocks that share its slots."""

    def cut(slots: int) -> tuple[int, int, int]:
        reads = max(1, slots // (WARPS * chunk_of(shape)))
        wanted = math.ceil(shape.slots / (reads * WARPS * chunk_of(shape)))
        # Few slots take fewer blocks than there are, so that each can have fewer queries.
        fitting = [q for q in _queries(shape) if shape.heads * shape.group // q * wanted <= blocks]
        queries = min(fitting, default=shape.group)
        return queries, reads, min(MOST_SPLITS, blocks // (shape.heads * shape.group // queries), wanted)

    few, more = cut(FEW_SLOTS), cut(MORE_SLOTS)
    return more if more[0] < few[0] else few


def _copies_are_long(shape: StepShape, tile: StepTile) -> bool:
    """Whether no rows are cut into short parts."""
    pairs = zip(shape.products.values(), tile.chunks, strict=True)
    return all(count == 1 or size >= LONG for p, count in pairs for size in row_bytes(p, count))


def _as_in_memory(size: int, chunks: int) -> bool:
    """Whether rows of a size are copied all at once, as `ring.h` does."""
    return chunks == 1 and (size % 128 != 0 or size < SHORT)


def _bytes_ahead(shape: StepShape, tile: StepTile) -> float:
    """How many bytes are on their way while a full ring's first slot is multiplied, in the mean over all of a layer."""
    pieces = [
        (p.outputs * p.padded * p.bits, piece_bytes(p, count))
        for p, count in zip(shape.products.values(), tile.chunks, strict=True)
    ]
    return (tile.ring - 1) * sum(size * piece for size, piece in pieces) / sum(size for size, _ in pieces)


def most_tiles(name: str, shape: Shape, blocks: int) -> int:
    """Returns how many tiles of 16 outputs of a product a block has at most; gates and others come in pairs."""
    together = 2 if name == "UP" else 1
    return math.ceil(shape.outputs / TILE / together / blocks) * together


def fewest_chunks(shape: Shape, limit: int) -> int | None:
    """Returns in how few chunks the inputs of a product can arrive, of so many bytes at most; None if in none."""
    for chunks in range(1, shape.blocks + 1):
        if shape.blocks % chunks or piece_bytes(shape, chunks) > limit:
            continue
        meets_planes = shape.groups == 1 or shape.inputs // shape.groups % (2 * shape.span) == 0
        if meets_planes and cuts_groups_evenly(shape, chunks):
            return chunks
    return None


def piece_bytes(shape: Shape, chunks: int) -> int:
    """Returns the bytes of a slot that a chunk of a tile takes, as `ring.h` lays it out."""
    rows = [size if _as_in_memory(size, chunks) else stride(size) for size in row_bytes(shape, chunks)]
    scales = 4 * (shape.groups // chunks) + 16 if shape.groups > 1 else 0
    return TILE * (sum(rows) + scales)


def scratch_bytes(shape: StepShape, tile: StepTile) -> int:
    """Returns what parts of a layer keep for themselves: sums, or what warps found in the cache."""
    a = shape.attention
    sums = [
        4 * TEAM * TILE * min(most_tiles(name, p, tile.blocks), PASS) * (DIGITS + (p.groups > 1))
        for name, p in shape.products.items()
    ]
    return -(-max(*sums, 4 * WARPS * tile.queries * (a.width + 2)) // 16) * 16


def shared_bytes(shape: StepShape, tile: StepTile) -> int:
    """Returns the shared memory of a block, as `step.cu` lays it out."""
    products = shape.products.values()
    digits = DIGITS * max(stride(p.padded) for p in products)
    totals = 4 * max(p.padded // 64 if p.groups > 1 else 2 * WARPS for p in products)
    ring = tile.ring * (tile.slot + BARRIERS)
    token = (tile.queries + 2) * shape.attention.width
    return ring + 2 * (shape.qkv.inputs + token) + digits + scratch_bytes(shape, tile) + totals + 8 * WARPS


def words_between(shape: StepShape, tile: StepTile) -> int:
    """Returns the words of 32 bits that blocks write for one another in a layer, as `between.h` lays them out."""
    a = shape.attention
    queries = tile.splits * a.heads * a.group
    found = queries * a.width + _filled_up(2 * queries)
    copied = sum(count // 2 for count in (shape.qkv.outputs, shape.out.inputs, 2 * shape.qkv.inputs, shape.down.inputs))
    return _filled_up(COPIES * _filled_up(copied) + found + PARTS)


def _filled_up(words: int) -> int:
    """To 16 bytes, which are read at once."""
    return -(-words // 4) * 4


def chunk_of(shape: AttentionShape) -> int:
    """Returns how many slots of the cache a warp reads at once: half as many as where it has more registers."""
    return attention_chunk(shape) // 2
