"""The Triton kernel for one or a few tokens: no tensor cores, but dot products of four bytes in one instruction.

A program computes some outputs. Each of its threads holds some words of codes of all of them, makes the activations
that they meet into fixed point once, and multiplies; what threads have is added up at the end. Within a word sums are
whole numbers, exact; between words they are float32.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lowbit.errors import ConfigError
from lowbit.pallas.fields import HALFWORD, Affine
from lowbit.pallas.fixed_point import LARGEST, FixedPoint, as_float, fixed_point
from lowbit.pallas.tiles import GemvTile
from lowbit.pallas.weight import GpuWeight, Part
from lowbit.pallas.words import dot4, field_in_bytes, joined

UNROLLED = 2
"""Most passes over the inputs that are written out, so that loads of the next come before sums of the last."""

_ONE, _MINUS_LOG2_E = "0f3F800000", "0fBFB8AA3B"
"""float32 numbers, as assembly writes them."""


class Shape(NamedTuple):
    """Everything static about a product.

    Attributes:
      b: tokens.
      k: inputs.
      n: outputs.
      groups: scales of an output.
      span: inputs side by side in a plane.
      blocks: of inputs.
      parts: of the codes.
      levels: what codes stand for, as they lie in bytes.
      signed: whether these bytes are signed.
      stacked: whether the weights are a stack.
      tile: of a program.
      interpret: whether inline assembly has to be avoided.
      gated: whether activations are made of gates and what they let pass.
    """

    b: int
    k: int
    n: int
    groups: int
    span: int
    blocks: int
    parts: tuple[Part, ...]
    levels: Affine
    signed: bool
    stacked: bool
    tile: GemvTile
    interpret: bool
    gated: bool

    @property
    def planes(self) -> int:
        """Planes of a block."""
        return HALFWORD // min(part.bits for part in self.parts)

    @property
    def pairs(self) -> int:
        """Pairs of neighbouring planes, which lie in the two bytes of a halfword."""
        return self.planes // 2

    @property
    def pairs_a_scale(self) -> int:
        """Neighbouring pairs that share a scale; all of a block if all blocks of an output do."""
        if self.groups == 1:
            return self.pairs
        return math.gcd(self.k // self.groups // (2 * self.span), self.pairs)

    @property
    def largest(self) -> int:
        """What no sum of a word exceeds; below 2**31 as `prepack` takes small levels alone."""
        codes = 1 << sum(part.bits for part in self.parts)
        lowest = -codes // 2 if self.signed else 0
        ends = (self.levels.first + self.levels.distance * code for code in (lowest, lowest + codes - 1))
        return 4 * self.pairs * LARGEST * max(map(abs, ends))


# A program of its own: what looks for loop invariants (flax's scan) drops an unused jit, and would keep a bare kernel.
@functools.partial(jax.jit, static_argnames=("tile", "interpret", "gated"))
def gemv(x: jax.Array, w: GpuWeight, tile: GemvTile, *, interpret: bool = False, gated: bool = False) -> jax.Array:
    """Returns x bf16[b k] times the levels of the weights and their scales, f32[b n].

    Activations are rounded by `fixed_point`, with a unit for the inputs of each word. What is not finite gives NaN.

    Args:
      x: activations.
      w: weights that it `takes`.
      tile: of a program.
      interpret: compute without a GPU.
      gated: x is f32[b 2k] or bf16, gates and then as many others; silu(gate) * other of them as bfloat16, rounded to
        it, is what is multiplied. Each program makes it for itself: for a few inputs that is less than a kernel more.

    Raises:
      ConfigError: a tile whose sizes are no powers of two, or weights that it does not take.
    """
    if tile.rows & (tile.rows - 1) or tile.words & (tile.words - 1):
        raise ConfigError(f"{tile} has sizes that are no powers of two", "take the tile of `lowbit.pallas.tiles`")
    if not takes(w):
        raise ConfigError(
            f"{w.k // w.groups} inputs a scale do not meet pairs of planes of {w.span}",
            "take a `Tile`, of tensor cores",
        )
    shape = shape_of(w, len(x), tile, interpret, gated)
    layer = [] if w.layer is None else [w.layer.astype(jnp.int32).reshape(1)]
    call = pl.pallas_call(
        functools.partial(_kernel, shape),
        out_shape=jax.ShapeDtypeStruct((shape.b, shape.n), jnp.float32),
        grid=(-(-shape.n // tile.rows),),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name=f"packed_{w.bits}_bits_gemv{'_gated' * gated}",
    )
    result: jax.Array = call(*layer, x, w.scale, *w.words)
    return result


def takes(w: GpuWeight) -> bool:
    """Returns whether the kernel can multiply by weights: both planes of a pair have the same scale."""
    return w.groups == 1 or w.k // w.groups % (2 * w.span) == 0


def shape_of(w: GpuWeight, tokens: int, tile: GemvTile, interpret: bool = False, gated: bool = False) -> Shape:
    """Returns what is static about a product."""
    signed = w.bits == 8  # as they lie there: code - 128
    levels = w.levels._replace(first=w.levels.first + 128 * w.levels.distance) if signed else w.levels
    sizes = tokens, w.k, w.n, w.groups, w.span, w.blocks, w.parts
    return Shape(*sizes, levels, signed, w.layer is not None, tile, interpret, gated)


def _kernel(shape: Shape, *refs: Any) -> None:
    *inputs, y_ref = refs
    layer = (inputs.pop(0)[0],) if shape.stacked else ()
    x_ref, scale_ref, *word_refs = inputs
    tile, span, planes = shape.tile, shape.span, shape.planes
    width = 2 * tile.words
    halfwords = shape.blocks * span
    row = pl.program_id(0) * tile.rows + _iota(tile.rows, 0)
    output = jnp.minimum(row, shape.n - 1)

    def load(ref: Any, row: jax.Array, at: jax.Array, mask: jax.Array | None, ordered: bool = False) -> jax.Array:
        place = jnp.broadcast_shapes(row.shape, at.shape)
        index = ref.at[(*(jnp.broadcast_to(i, place) for i in layer), *(jnp.broadcast_to(i, place) for i in (row, at)))]
        if mask is None:
            return plgpu.load(index, volatile=ordered)
        return plgpu.load(index, mask=jnp.broadcast_to(mask, place), other=0, volatile=ordered)

    def step(number: Any, totals: list[jax.Array]) -> list[jax.Array]:
        column = number * width + _iota(width, 1)
        # Not floor division, in whose signs Triton loses sight of what is contiguous.
        block, place = jax.lax.div(column, span), jax.lax.rem(column, span)
        inside = None if halfwords % width == 0 else column < halfwords

        def words(ref: Any, part: Part) -> list[jax.Array]:
            subs = planes * part.bits // HALFWORD
            at = [column] if subs == 1 else [(block * subs + sub) * span + place for sub in range(subs)]
            return [joined(*_halves(load(ref, output, i, inside, tile.ordered)), interpret=shape.interpret) for i in at]

        def activations(token: int, plane: int) -> jax.Array:
            at = (block * planes + plane) * span + place

            def inputs(first: int) -> jax.Array:
                index = x_ref.at[jnp.full_like(at, token), at + first]
                if shape.k == shape.blocks * planes * span and inside is None:
                    return plgpu.load(index, volatile=tile.ordered)
                return plgpu.load(index, mask=at < shape.k, other=0, volatile=tile.ordered)

            x = inputs(0)
            if not shape.gated:
                return x
            # Rounded here, where they come from a product in float32: that takes a kernel of its own elsewhere.
            gate, other = (part.astype(jnp.bfloat16).astype(jnp.float32) for part in (x, inputs(shape.k)))
            return (_silu(gate, interpret=shape.interpret) * other).astype(jnp.bfloat16)

        # All loads first: what follows waits for them together, not for one after the other.
        loaded = [words(ref, part) for ref, part in zip(word_refs, shape.parts, strict=True)]
        xs = [[activations(token, plane) for plane in range(planes)] for token in range(shape.b)]
        codes = _codes(loaded, shape)
        word_block = jax.lax.div(number * tile.words + _iota(tile.words, 1), span // 2)
        for token, x in enumerate(xs):
            fixed = fixed_point([_halves(plane) for plane in x], interpret=shape.interpret)
            for begin in range(0, shape.pairs, shape.pairs_a_scale):
                run = range(begin, begin + shape.pairs_a_scale)
                part = as_float(_dot(codes, fixed, run, shape), shape.largest) * fixed.unit
                if shape.groups > 1:
                    first = (word_block * planes + 2 * begin) * span
                    group = jnp.minimum(jax.lax.div(first, shape.k // shape.groups), shape.groups - 1)
                    part = part * load(scale_ref, output, group, None)
                totals[token] = totals[token] + part
        return totals

    totals = [jnp.zeros((tile.rows, tile.words), jnp.float32) for _ in range(shape.b)]
    steps = -(-halfwords // width)
    if steps <= UNROLLED:
        for number in range(steps):
            totals = step(number, totals)
    else:
        totals = jax.lax.fori_loop(0, steps, step, totals)
    for token, total in enumerate(totals):
        y = jnp.sum(total, axis=1, keepdims=True)
        if shape.groups == 1:
            y = y * load(scale_ref, output, jnp.zeros_like(output), None)
        plgpu.store(y_ref.at[jnp.full_like(row, token), row], y, mask=row < shape.n)


def _iota(size: int, axis: int) -> jax.Array:
    """0 .. size-1 as a column (axis 0) or a row (axis 1)."""
    return jax.lax.broadcasted_iota(jnp.int32, (size, 1) if axis == 0 else (1, size), axis)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every other number of [m 2h], and those between: [m h] each."""
    m, width = x.shape
    even, odd = jnp.unstack(x.reshape(m, width // 2, 2), axis=2)
    return even, odd


def _silu(x: jax.Array, *, interpret: bool) -> jax.Array:
    """x / (1 + exp(-x)) of f32, on a GPU by its approximations of 2**-22 or so, which take an instruction each."""
    if interpret:
        return x / (1 + jnp.exp(-x))
    text = (
        f"{{ .reg .f32 t; mul.f32 t, $1, {_MINUS_LOG2_E}; ex2.approx.ftz.f32 t, t; add.f32 t, t, {_ONE}; "
        "rcp.approx.ftz.f32 t, t; mul.f32 $0, $1, t; }"
    )
    shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    [result] = plgpu.elementwise_inline_asm(text, args=(x,), constraints="=f,f", pack=1, result_shape_dtypes=[shape])
    return result


def _codes(words: list[list[jax.Array]], shape: Shape) -> list[jax.Array]:
    """The codes of each pair of planes, in bytes, from the words of each part."""
    codes = []
    for pair in range(shape.pairs):
        code = None
        for part, loaded in zip(shape.parts, words, strict=True):
            word, start = loaded[pair * part.bits // 8], pair * part.bits % 8
            field = word if part.bits == 8 else field_in_bytes(word, part, start, interpret=shape.interpret)
            code = field if code is None else code | field
        assert code is not None
        codes.append(code)
    return codes


def _dot(codes: list[jax.Array], x: FixedPoint, pairs: range, shape: Shape) -> jax.Array:
    """The sum of levels times activations over some pairs of planes of each word, i32."""
    high = low = jnp.zeros_like(codes[0])
    for pair in pairs:
        high = dot4(codes[pair], x.high[pair], high, (shape.signed, True), interpret=shape.interpret)
        low = dot4(codes[pair], x.low[pair], low, (shape.signed, False), interpret=shape.interpret)
    total = sum(x.sums[pair] for pair in pairs[1:]) + x.sums[pairs[0]] if len(pairs) > 1 else x.sums[pairs[0]]
    return (high * 256 + low) * shape.levels.distance + total * shape.levels.first
