"""How a product by `product.cu` is cut: its shape, when a tile fits it, and what lies in shared memory."""

import math
from typing import NamedTuple

from lowbit.cuda import kernels

MOST_TOKENS = 4
"""Their activations wait in registers until all are there, and so do three sums of each."""
MOST_TURNS = 16
"""Most activations of a thread, in groups of 8: as many as registers hold."""
MOST_INPUTS = 1 << 16
"""So that no sum of codes times a byte can leave 32 bits."""
TILE = 16
"""Outputs of one product of the tensor cores."""
DIGITS = 3
"""Bytes of an activation."""
UNIT = 64
"""Bytes of a row that a warp multiplies at a time; of a piece of 16 rows they lie together."""
MOST_UNITS = 256
"""Of a copy."""
BARRIERS = 16
"""Bytes of the two barriers of a slot."""
AHEAD = 48 << 10
"""Bytes on their way to a multiprocessor that keep memory busy. It answers in no order: with more of them, more are
there together at the end, when there is nothing to do beside multiplying them."""
RESERVED = 1 << 10
"""Bytes of shared memory that the system takes for each block."""
REGISTERS = 1 << 16
"""Of a multiprocessor."""
ENOUGH_REGISTERS = 128
"""Of a thread: with more of them a second block may not fit, and memory rests while the only one multiplies; with
fewer, some kernels keep numbers in memory."""


class CudaTile(NamedTuple):
    """How a product is cut.

    Attributes:
      rows: outputs of a block of threads, at most; a multiple of 16, and no more than threads that multiply.
      warps: of 32 threads, which share the inputs; one more has codes come.
      chunks: parts of the inputs, which divide their blocks: codes of 16 outputs come one part after the other.
      ahead: such pieces that are on their way at once; 0 for as many as keep memory busy.
    """

    rows: int
    warps: int
    chunks: int
    ahead: int = 0


class Shape(NamedTuple):
    """Everything else static about a product.

    Attributes:
      tokens: rows of the activations.
      inputs: of the matrix.
      outputs: of the matrix.
      groups: scales of an output.
      bits: of a code, as they lie in memory: 1, 2, 3 (a plane of 2 and one of 1), 4 or 8.
      span: inputs side by side in a plane of the layout (`lowbit.pallas.weight`).
      blocks: of inputs, in this layout.
      first: what code 0 stands for.
      distance: of neighbouring codes.
      gated: whether activations are made of gates: silu(gate) * other of f32[2k], rounded to bfloat16 before and after.
      eps: of the norm of a residual stream that activations are made by; None where there is none.
    """

    tokens: int
    inputs: int
    outputs: int
    groups: int
    bits: int
    span: int
    blocks: int
    first: int
    distance: int
    gated: bool = False
    eps: float | None = None

    @property
    def parts(self) -> tuple[int, ...]:
        """The bits of each array of codes."""
        return (2, 1) if self.bits == 3 else (self.bits,)

    @property
    def made(self) -> bool:
        """Whether the kernel makes the activations itself."""
        return self.gated or self.eps is not None

    @property
    def padded(self) -> int:
        """Inputs of an output, filled up to whole blocks."""
        return self.blocks * (8 // min(self.parts)) * 2 * self.span


def fits(shape: Shape, tile: CudaTile) -> bool:
    """Returns whether the kernel can compute a product, cut like this."""
    threads = 32 * tile.warps
    return (
        0 < shape.tokens <= (1 if shape.made else MOST_TOKENS)
        and shape.inputs % 4 == 0
        and (shape.groups == 1 or shape.groups % 4 == shape.inputs // shape.groups % (2 * shape.span) == 0)
        and shape.inputs <= MOST_INPUTS
        and tile.rows % TILE == 0
        and tile.rows <= threads <= 1024
        and shape.blocks % tile.chunks == 0
        and cuts_groups_evenly(shape, tile.chunks)
        and max(row_bytes(shape, tile.chunks)) <= MOST_UNITS * UNIT
        and tile.ahead >= 0
        and fewest_warps(shape) <= tile.warps
        and slots(shape, tile) >= min(2, pieces(tile))
    )


def fewest_warps(shape: Shape) -> int:
    """Returns how many warps it takes to keep the activations of a product in registers until they are rounded."""
    # Gates and others are float32 until they become an activation; so is what a norm adds, and multiplies by.
    waiting = max(1, shape.tokens) * (4 if shape.gated else 1 if shape.eps is None else 5)
    return math.ceil(shape.padded / 8 / 32 / (MOST_TURNS // waiting))


def cuts_groups_evenly(shape: Shape, chunks: int) -> bool:
    """Returns whether each chunk has groups of its own, whose scales are copied four at a time."""
    return shape.groups == 1 or (shape.groups % (4 * chunks) == 0 and (chunks == 1 or shape.inputs == shape.padded))


def most_chunks(shape: Shape, chunks: int) -> int:
    """Returns the largest divisor of a number of chunks in which a product's inputs can come."""
    divisors = (count for count in range(chunks, 0, -1) if chunks % count == 0)
    return next(
        count for count in divisors if shape.blocks % count == 0 and (count == 1 or cuts_groups_evenly(shape, count))
    )


def stride(size: int) -> int:
    """Returns how many bytes rows lie apart in shared memory, so that those side by side are in different banks."""
    return size + (64 if size % 128 == 0 else 0)


def row_bytes(shape: Shape, chunks: int) -> list[int]:
    """Returns the bytes of a row in a chunk, of each part of the codes."""
    return [shape.padded // 8 * bits // chunks for bits in shape.parts]


def slot_bytes(shape: Shape, tile: CudaTile) -> int:
    """Returns those of a slot of the ring, and of its barriers."""
    scales = 4 * (shape.groups // tile.chunks) if shape.groups > 1 else 0
    return TILE * (sum(row_bytes(shape, tile.chunks)) + scales) + BARRIERS


def pieces(tile: CudaTile) -> int:
    """Returns in how many pieces the codes of a block come, at most."""
    return tile.rows // TILE * tile.chunks


def slots(shape: Shape, tile: CudaTile) -> int:
    """Returns how many pieces the ring of a block has room for: all, if they fit into shared memory."""
    return min(pieces(tile), max(0, kernels.SHARED - _bytes_beside(shape, tile)) // slot_bytes(shape, tile))


def _bytes_beside(shape: Shape, tile: CudaTile) -> int:
    """What a block has in shared memory beside the ring."""
    columns, grouped = DIGITS * shape.tokens, shape.groups > 1
    sums = tile.warps * tile.rows * (columns + grouped * shape.tokens)
    totals = shape.tokens * (tile.warps + (shape.padded // 64 if grouped else 2 * tile.warps))
    squares = tile.warps if shape.eps is not None else 0
    return columns * stride(shape.padded) + 4 * (sums + totals + squares)


def shared_bytes(shape: Shape, tile: CudaTile) -> int:
    """Returns the shared memory of a block of threads, as `product.cu` lays it out."""
    return slots(shape, tile) * slot_bytes(shape, tile) + _bytes_beside(shape, tile)


def grid(shape: Shape, tile: CudaTile) -> int:
    """Returns how many blocks of threads there are."""
    return math.ceil(shape.outputs / tile.rows)


def resident(shape: Shape, tile: CudaTile) -> int:
    """Returns how many blocks a multiprocessor is to have at once: as shared memory lets it, with enough registers."""
    by_memory = (kernels.SHARED + RESERVED) // (shared_bytes(shape, tile) + RESERVED)
    return max(1, min(by_memory, REGISTERS // (32 * (tile.warps + 1) * ENOUGH_REGISTERS)))


def pieces_ahead(shape: Shape, tile: CudaTile) -> int:
    """Returns how many pieces are on their way to a block at once."""
    together = min(resident(shape, tile), math.ceil(grid(shape, tile) / kernels.PROCESSORS))
    ahead = tile.ahead or math.ceil(AHEAD / together / slot_bytes(shape, tile))
    return min(ahead, slots(shape, tile))
