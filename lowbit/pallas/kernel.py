"""The Triton kernel of packed products: codes become bfloat16 or int8 in registers, and tensor cores multiply.

A program computes some outputs for all tokens. Weights are the rows of the matrix product, tokens its columns. A few
tokens would leave most columns empty; so each row of weights is cut into slices, the slices are rows of their own, and
the columns hold the activations of every slice. The products that are wanted are those of a slice with itself, and the
others cost nothing, as the empty columns would. The more slices, the fewer outputs make a tile, and the more programs
share a small matrix, with no second pass over partial sums. With many tokens `splits` does that instead: programs that
share outputs write sums of their own, which XLA adds.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lowbit.errors import ConfigError
from lowbit.pallas.fields import HALFWORD, Affine, added, to_bfloat16, to_int8
from lowbit.pallas.tiles import COLUMNS, Tile, power_of_two
from lowbit.pallas.weight import GpuWeight, Part, field_of

_ALONG_LAST = (((1,), (1,)), ((), ()))


class Shape(NamedTuple):
    """Everything static about a product.

    Attributes:
      b: tokens.
      k: inputs.
      n: outputs.
      groups: scales of an output.
      bits: of a code.
      span: inputs side by side in a plane.
      blocks: of inputs.
      parts: of the codes.
      levels: what codes stand for.
      stacked: whether the weights are a stack.
      tile: of a program.
      interpret: whether inline assembly has to be avoided.
    """

    b: int
    k: int
    n: int
    groups: int
    bits: int
    span: int
    blocks: int
    parts: tuple[Part, ...]
    levels: Affine
    stacked: bool
    tile: Tile
    interpret: bool

    @property
    def planes(self) -> int:
        """Planes of a block."""
        return HALFWORD // min(part.bits for part in self.parts)

    @property
    def tokens(self) -> int:
        """Columns of a slice: tokens, up to the next power of two."""
        return power_of_two(self.b)

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return max(COLUMNS, self.tile.slices * self.tokens)

    @property
    def planes_a_scale(self) -> int:
        """Neighbouring planes that share a scale; all of a block if all blocks of an output do."""
        if self.groups == 1:
            return self.planes
        return math.gcd(self.k // self.groups // self.span, self.planes)


def product(x: jax.Array, w: GpuWeight, tile: Tile, *, interpret: bool = False) -> jax.Array:
    """Returns x bf16[b k] times the levels of the weights and their scales, f32[b n]."""
    return _call(x, w, None, tile=tile, interpret=interpret)


def product_int8(x: jax.Array, sums: jax.Array, w: GpuWeight, tile: Tile, *, interpret: bool = False) -> jax.Array:
    """Returns x i8[b k] times the same, f32[b n].

    With one scale an output all sums are whole numbers, exact, and the scale is the only rounding after they become
    float32. With groups the result is `sum_c scale[g(c)] * codes[c] + first * sum_g scale[g] * sums[g]`, where `codes`
    are exact sums of codes times their distance over the planes c of a block that share the scale of group g, and
    `first` is what code 0 stands for. Both sums over c and g are float32, and so is each of their terms: rounded when
    a whole number is converted, when it is scaled, and when it is added.

    Args:
      x: activations.
      sums: i32[b g] of x over the inputs of each scale.
      w: weights.
      tile: of a program.
      interpret: compute without a GPU.
    """
    # Sums over some of the inputs are rounded to float32 when they leave a program: there is no split of exact ones.
    tile = tile._replace(splits=1)
    if w.groups == 1:
        return _call(x, w, sums, tile=tile, interpret=interpret)
    y = _call(x, w, None, tile=tile, interpret=interpret)
    first = _first(w.levels, w.bits)
    if first == 0:
        return y
    # Once for each scale, not for each part of its inputs: a group may be many blocks, and blocks may be filled up.
    offset = jax.lax.dot_general(
        *(sums.astype(jnp.float32), w.own(w.scale), _ALONG_LAST), precision=jax.lax.Precision.HIGHEST
    )
    return y + jnp.float32(first) * offset


# A program of its own: what looks for loop invariants (flax's scan) drops an unused jit, and would keep a bare kernel.
@functools.partial(jax.jit, static_argnames=("tile", "interpret"))
def _call(x: jax.Array, w: GpuWeight, sums: jax.Array | None, *, tile: Tile, interpret: bool) -> jax.Array:
    b, k = x.shape
    shape = Shape(
        *(b, k, w.n, w.groups, w.bits, w.span, w.blocks, w.parts, w.levels, w.layer is not None, tile, interpret)
    )
    if w.blocks % (tile.slices * tile.splits) or tile.rows & (tile.rows - 1):
        raise ConfigError(
            f"{tile} does not cut {w.blocks} blocks of inputs evenly", "take a tile of `lowbit.pallas.tiles.fitted`"
        )
    layer = [] if w.layer is None else [w.layer.astype(jnp.int32).reshape(1)]
    extra = [] if sums is None else [sums]
    integer = x.dtype == jnp.int8

    def body(*refs: Any) -> None:
        _kernel(shape, integer, *refs)

    call = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((tile.splits * b, w.n), jnp.float32),
        grid=(-(-w.n // tile.rows), tile.splits),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=f"packed_{w.bits}_bits_{'int8' if integer else 'bfloat16'}",
    )
    result: jax.Array = call(*layer, x, *extra, w.scale, *w.words)
    return result if tile.splits == 1 else jnp.sum(result.reshape(tile.splits, b, w.n), axis=0)


def _kernel(shape: Shape, integer: bool, *refs: Any) -> None:
    *inputs, y_ref = refs
    layer = (inputs.pop(0)[0],) if shape.stacked else ()
    x_ref = inputs.pop(0)
    sums_ref: Any = inputs.pop(0) if integer and shape.groups == 1 else None
    scale_ref, *word_refs = inputs
    tile, span, planes = shape.tile, shape.span, shape.planes
    m, columns = tile.rows * tile.slices, shape.columns
    first_row = pl.program_id(0) * tile.rows

    # Rows of the tile: slice by slice of each output.
    row = _iota(m, 0)
    output = jnp.minimum(first_row + row // tile.slices, shape.n - 1)
    halfword = _iota(span, 1)
    # Columns: token by token of each slice.
    column = _iota(columns, 0)
    slice_of, token = column // shape.tokens, column % shape.tokens
    used = None
    if shape.b < shape.tokens or tile.slices * shape.tokens < columns:
        used = (token < shape.b) & (slice_of < tile.slices)
        token = jnp.minimum(token, shape.b - 1)

    def activations(block: Any, plane: int) -> jax.Array:
        at = (block + slice_of) * (planes * span) + plane * span + halfword
        mask = used
        if shape.k < shape.blocks * planes * span:
            inside = at < shape.k
            mask = inside if mask is None else mask & inside
        index = x_ref.at[jnp.broadcast_to(token, at.shape), at]
        if mask is None:
            return plgpu.load(index)
        return plgpu.load(index, mask=jnp.broadcast_to(mask, at.shape), other=0)

    def scales(index: Any, like: jax.Array) -> jax.Array:
        return plgpu.load(scale_ref.at[(*(jnp.broadcast_to(i, like.shape) for i in layer), like, index)])

    def weights(block: Any) -> list[jax.Array]:
        """The tile of each plane."""
        found: list[jax.Array | None] = [None] * planes
        for ref, part in zip(word_refs, shape.parts, strict=True):
            fields = HALFWORD // part.bits
            for sub in range(planes // fields):
                at = ((block + row % tile.slices) * (planes // fields) + sub) * span + halfword
                outputs = jnp.broadcast_to(output, at.shape)
                words = plgpu.load(ref.at[(*(jnp.broadcast_to(i, at.shape) for i in layer), outputs, at)])
                decoded = _decoded(words, part, shape, integer)
                for plane in range(fields):
                    upper, lower = decoded[field_of(plane, fields)], found[sub * fields + plane]
                    joined = upper if lower is None else added(lower, upper, interpret=shape.interpret)
                    found[sub * fields + plane] = joined
        return [tile_of for tile_of in found if tile_of is not None]

    dtype = jnp.int32 if integer else jnp.float32
    # In the order of fields, which is how planes are decoded: no more of them wait in registers than they have to.
    order = sorted(range(planes), key=lambda plane: field_of(plane, planes))

    def step(number: Any, total: jax.Array) -> jax.Array:
        block = number * tile.slices
        decoded = weights(block)
        if shape.groups == 1:
            return _dots(decoded, lambda plane: activations(block, plane), order, total)
        for begin in range(0, planes, shape.planes_a_scale):
            chosen = range(begin, begin + shape.planes_a_scale)
            part = _dots(decoded, lambda plane: activations(block, plane), chosen, jnp.zeros((m, columns), dtype))
            inputs_a_scale = shape.k // shape.groups
            group = ((block + row % tile.slices) * (planes * span) + begin * span) // inputs_a_scale
            group = jnp.minimum(group, shape.groups - 1)
            if integer:
                part = part * shape.levels.distance
            total = total + part.astype(jnp.float32) * scales(group, output)
        return total

    out_row = first_row + _iota(tile.rows, 0)
    inside_row = jnp.minimum(out_row, shape.n - 1)
    # Before the sums, not behind them, where everything would wait for it.
    scale = scales(jnp.zeros_like(inside_row), inside_row) if shape.groups == 1 else None
    start = jnp.zeros((m, columns), dtype if shape.groups == 1 else jnp.float32)
    steps = shape.blocks // tile.slices // tile.splits
    split = pl.program_id(1)
    total = jax.lax.fori_loop(0, steps, lambda number, total: step(split * steps + number, total), start)
    y, width = _of_outputs(total, shape)
    out_token = _iota(width, 1)
    if scale is not None:
        if integer:
            token_index = jnp.minimum(out_token, shape.b - 1)
            # Sums of codes times activations become sums of levels times activations, exactly.
            offset = plgpu.load(sums_ref.at[token_index, jnp.zeros_like(token_index)]) * _first(
                shape.levels, shape.bits
            )
            y = y * shape.levels.distance + offset
        y = y.astype(jnp.float32) * scale
    place = (tile.rows, width)
    plgpu.store(
        y_ref.at[jnp.broadcast_to(split * shape.b + out_token, place), jnp.broadcast_to(out_row, place)],
        y,
        mask=(out_row < shape.n) & (out_token < shape.b),
    )


def _iota(size: int, axis: int) -> jax.Array:
    """0 .. size-1 as a column (axis 0) or a row (axis 1)."""
    return jax.lax.broadcasted_iota(jnp.int32, (size, 1) if axis == 0 else (1, size), axis)


def _decoded(words: jax.Array, part: Part, shape: Shape, integer: bool) -> list[jax.Array]:
    """Planes of a part. The first part's levels begin where the code's do, the others' at 0."""
    if integer:
        return to_int8(words, part.bits, part.weight, interpret=shape.interpret)
    first = shape.levels.first if part.weight == 1 else 0
    levels = Affine(first, shape.levels.distance * part.weight)
    return to_bfloat16(words, part.bits, levels, interpret=shape.interpret)


def _dots(decoded: list[jax.Array], activations: Any, planes: Iterable[int], total: jax.Array) -> jax.Array:
    for plane in planes:
        x = activations(plane)
        total = total + jax.lax.dot_general(decoded[plane], x, _ALONG_LAST, preferred_element_type=total.dtype)
    return total


def _first(levels: Affine, bits: int) -> int:
    """What the whole number 0 stands for where codes are multiplied as int8."""
    return levels.first + 128 * levels.distance if bits == 8 else levels.first  # bytes are stored as code - 128


def _of_outputs(total: jax.Array, shape: Shape) -> tuple[jax.Array, int]:
    """Adds up the slices of each output: [rows slices, columns] -> ([rows width], width)."""
    tile, columns, tokens = shape.tile, shape.columns, shape.tokens
    if tile.slices == 1:
        return total, columns
    own = _iota(total.shape[0], 0) % tile.slices == _iota(columns, 1) // tokens
    kept = jnp.where(own, total, jnp.zeros_like(total))
    by_column = jnp.sum(kept.reshape(tile.rows, tile.slices, columns), axis=1, dtype=total.dtype)
    if tokens == 1:
        return jnp.sum(by_column, axis=1, keepdims=True, dtype=total.dtype), 1
    return jnp.sum(by_column.reshape(tile.rows, columns // tokens, tokens), axis=1, dtype=total.dtype), tokens
