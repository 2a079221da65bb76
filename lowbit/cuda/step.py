"""All layers of a step of one sequence by `step.cu`: what it is compiled with, when it can be, and the call.

What is computed is what kernels of single products and of attention compute (`lowbit.cuda.product`,
`lowbit.cuda.attention`), with numbers rounded to bfloat16 in the same places; float sums of norms and over slots of the
cache are in another order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.cuda import kernels, step_shapes, target
from lowbit.cuda.product import matrix_defines
from lowbit.cuda.step_shapes import (
    FEWEST_SLOTS,
    StepShape,
    StepTile,
    chunk_of,
    scratch_bytes,
    shared_bytes,
    words_between,
)
from lowbit.errors import ConfigError

SOURCE = Path(__file__).with_name("step.cu")
EMPTY = 0xFFFFFFFF
"""What words between blocks are before they are written."""


class Matrices(NamedTuple):
    """A matrix of each layer.

    Attributes:
      scale: f32[layers n g].
      words: i16[layers n halfwords] of each part of the codes.
    """

    scale: jax.Array
    words: Sequence[jax.Array]


def defines(shape: StepShape, tile: StepTile) -> dict[str, int]:
    """Returns what `step.cu` is compiled with."""
    a = shape.attention
    found = {
        "LAYERS": shape.layers,
        "EPS": int(np.float32(shape.eps).view(np.uint32)),
        "WARPS": step_shapes.WARPS,
        "TEAM": step_shapes.TEAM,
        "HEADS": a.heads,
        "SHARING": a.group,
        "GROUP": tile.queries,
        "WIDTH": a.width,
        "SLOTS": a.slots,
        "CHUNK": chunk_of(a),
        "GRID": tile.blocks,
        "SPLITS": tile.splits,
        "READS": tile.reads,
        "PASS": step_shapes.PASS,
        "COPIES": step_shapes.COPIES,
        "NEST": 1,
        "ABREAST": 2,
        "SLOT": tile.slot,
        "RING": tile.ring,
        "SHORT": step_shapes.SHORT,
        "SCRATCH": scratch_bytes(shape, tile),
        "SHARED": shared_bytes(shape, tile),
    }
    for (name, product), chunks in zip(shape.products.items(), tile.chunks, strict=True):
        found |= matrix_defines(name, product, chunks)
    return found


def take_step(
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    filled: jax.Array,
    norms: Sequence[jax.Array],
    matrices: Sequence[Matrices],
    keys: jax.Array,
    values: jax.Array,
    shape: StepShape,
    tile: StepTile,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (normed last state bf16[1 d]; keys; values), these in the memory of the given ones.

    Args:
      x: embedded token bf16[1 d].
      cos: f32[1 1 h/2] of its position.
      sin: likewise.
      filled: i32[2], slots in use, and the first of the sequence; the token is written behind them.
      norms: scales in front of attention f32[layers d], in front of gates, and of the last norm f32[d].
      matrices: qkv, out, up and down.
      keys: bf16[layers 1 kv_heads slots h], turned.
      values: likewise.
      shape: of the step.
      tile: of `step_tile`.

    Raises:
      ConfigError: a tile that does not fit.
      KernelError: no compiler.
    """
    if tile.ring < FEWEST_SLOTS or shared_bytes(shape, tile) > kernels.SHARED:
        raise ConfigError(f"{tile} does not fit {shape}", "take the tile of `step_tile`")
    between = jnp.full((shape.layers, words_between(shape, tile)), EMPTY, jnp.uint32)
    weights = [array for m in matrices for array in (m.scale, m.words[0], m.words[-1])]
    arguments = [x, cos, sin, filled, *norms, *weights, between, keys, values]
    changed = [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in (between, keys, values)]
    results = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), *changed]
    aliases = {len(arguments) - 3 + i: 1 + i for i in range(3)}
    call = jax.ffi.ffi_call(target.STEP_TARGET, results, input_output_aliases=aliases)
    hidden, _, keys, values = call(
        *arguments,
        kernel=kernels.known(SOURCE, defines(shape, tile)),
        blocks=np.int64(tile.blocks),
        threads=np.int64(32 * (step_shapes.WARPS + 1)),
        shared=np.int64(shared_bytes(shape, tile)),
    )
    return hidden, keys, values
