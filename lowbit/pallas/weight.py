"""Packed weights as the GPU kernel reads them: codes laid out in planes, once, when they are loaded.

The inputs of an output are cut into blocks of `planes * span`. One field of `span` halfwords holds the codes of a
plane: of as many neighbouring inputs, which meet as many neighbouring activations. Plane p lies in field `field_of(p)`:
two neighbouring planes are the same field of the lower and of the upper byte. 3-bit codes are two parts, their lower 2
bits and their upper one.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.errors import QuantizerError
from lowbit.formats import PackedTensor
from lowbit.kernels.reference import integer_levels
from lowbit.pallas.fields import HALFWORD, TURNED, Affine, places

SPANS = {1: (32,), 2: (64, 32), 3: (32,), 4: (64, 32), 8: (64, 32)}
"""Inputs that lie side by side in a plane, by bits: the widest loads that keep activations of a block in shared memory.
The second is taken where groups or padding ask for it."""


class Part(NamedTuple):
    """Some bits of every code.

    Attributes:
      bits: how many: 1, 2, 4 or 8.
      weight: of the lowest of them in the code.
    """

    bits: int
    weight: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GpuWeight:
    """A quantized matrix [k n], or a stack of them, for `lowbit.pallas.matmul`.

    Attributes:
      words: i16[*s n halfwords] of each of `parts`.
      scale: f32[*s n g], of levels that are whole numbers: the file's scale times the unit.
      zero: f32[*s g n] or None: what is subtracted of whole levels before they are scaled.
      in_scale: f32[*s k] or None, a factor of each input.
      layer: i32[] that chooses from a stack, or None for what is no stack; of numpy where it is known in advance.
      levels: what code 0 stands for and how far apart codes are, in whole numbers (static).
      unit: of these whole numbers, which `scale` holds already (static).
      bits: of a code: 1, 2, 3, 4 or 8 (static).
      span: inputs side by side in a plane (static).
      k: inputs (static).
    """

    words: tuple[Any, ...]
    scale: Any
    zero: Any
    in_scale: Any
    layer: Any
    levels: Affine = dataclasses.field(metadata={"static": True})
    unit: float = dataclasses.field(metadata={"static": True})
    bits: int = dataclasses.field(metadata={"static": True})
    span: int = dataclasses.field(metadata={"static": True})
    k: int = dataclasses.field(metadata={"static": True})

    @property
    def parts(self) -> tuple[Part, ...]:
        """What each of `words` holds."""
        return parts(self.bits)

    @property
    def block(self) -> int:
        """Inputs of a block."""
        return block(self.bits, self.span)

    @property
    def blocks(self) -> int:
        """Blocks of an output."""
        return self.words[0].shape[-1] * HALFWORD // (self.parts[0].bits * self.block)

    @property
    def n(self) -> int:
        """Outputs."""
        return int(self.words[0].shape[-2])

    @property
    def groups(self) -> int:
        """Scales of an output."""
        return int(self.scale.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes on the device, of the whole stack."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def of_layer(self, layer: jax.Array | np.integer[Any]) -> "GpuWeight":
        """Returns one matrix i32[] of a stack, which stays where it is."""
        return dataclasses.replace(self, layer=layer)

    def single(self) -> "GpuWeight":
        """Returns the matrix that is meant, cut out of its stack."""
        cut: GpuWeight = jax.tree.map(self.own, dataclasses.replace(self, layer=None))
        return cut

    def own(self, x: jax.Array) -> jax.Array:
        """Returns the part of one of the arrays that belongs to the matrix that is meant."""
        return x if self.layer is None else x[self.layer]

    def scaled_inputs(self, x: jax.Array) -> jax.Array:
        """Returns x [b k] times the factors of the inputs; x itself where there are none."""
        return x if self.in_scale is None else x.astype(jnp.float32) * self.own(self.in_scale)[None, :]

    def rows(self, index: jax.Array) -> jax.Array:
        """Returns the weights of some outputs of a matrix that is no stack, i32[r] of them, f32[r k]."""
        part = dataclasses.replace(self, words=tuple(words[index] for words in self.words))
        levels = codes_of(part).astype(jnp.int32) * self.levels.distance + self.levels.first
        wide = levels.astype(jnp.float32).reshape(len(index), self.groups, -1)
        if self.zero is not None:
            wide = wide - self.zero[index][:, :, None]
        decoded = (wide * self.scale[index][:, :, None]).reshape(len(index), self.k)
        return self.scaled_inputs(decoded)


def parts(bits: int) -> tuple[Part, ...]:
    """Returns how codes of so many bits are split."""
    return (Part(2, 1), Part(1, 4)) if bits == 3 else (Part(bits, 1),)


def block(bits: int, span: int) -> int:
    """Returns the inputs of a block: as many planes as the part with most of them has, of `span` inputs each."""
    return HALFWORD // min(part.bits for part in parts(bits)) * span


def field_of(plane: int, fields: int) -> int:
    """Returns the field of halfwords of so many fields that holds a plane."""
    return plane // 2 + plane % 2 * (fields // 2)


def bits_of(num_levels: int) -> int:
    """Returns the bits that codes of so many levels take on a GPU: ternary codes take 2.

    Raises:
      QuantizerError: more than 256 levels.
    """
    for bits in (1, 2, 3, 4, 8):
        if num_levels <= 1 << bits:
            return bits
    raise QuantizerError(f"a grid of {num_levels} levels has no layout on a GPU", "use a grid of at most 256 levels")


def affine(levels: tuple[float, ...]) -> tuple[Affine, float]:
    """Returns levels as whole numbers at equal distances, and their unit, exactly.

    Raises:
      QuantizerError: another codebook.
    """
    integers = integer_levels(np.asarray(levels, np.float32))
    distances = np.diff(integers.values)
    if (distances != distances[0]).any():
        raise QuantizerError(f"levels {list(levels)} are not at equal distances", "take the portable path")
    return Affine(int(integers.values[0]), int(distances[0])), float(integers.step)


def span_for(bits: int, k: int, group: int) -> int:
    """Returns the span for k inputs with a scale for each `group` of them.

    Raises:
      QuantizerError: groups that no span divides.
    """
    spans = SPANS[bits]
    possible = [span for span in spans if group == k or group % span == 0]
    if not possible:
        raise QuantizerError(
            f"{group} inputs a scale do not meet a plane of {spans[-1]}", f"use groups that {spans[-1]} divides"
        )
    return min(possible, key=lambda span: -(-k // block(bits, span)) * block(bits, span))


def prepack(
    codes: jax.Array,
    scale: jax.Array,
    levels: tuple[float, ...],
    zero: jax.Array | None = None,
    in_scale: jax.Array | None = None,
) -> GpuWeight:
    """Lays codes out for the kernel; under jit unpacking and this are one pass.

    Args:
      codes: u8[*s n k], a row an output.
      scale: f16 or f32 [*s g n], or [*s 1 1].
      levels: what a code stands for.
      zero: as scale, in units of levels, or None.
      in_scale: [*s k], or None.

    Raises:
      QuantizerError: levels that are no whole numbers of a step at equal distances, or groups that do not meet planes.
    """
    *_, n, k = codes.shape
    whole, unit = affine(levels)
    bits = bits_of(len(levels))
    for part in parts(bits):  # a grid that does not fit is refused here, not in the kernel
        if part.bits < 8:
            places(part.bits, Affine(whole.first, whole.distance * part.weight))
    groups = scale.shape[-2]
    span = span_for(bits, k, k // groups)

    def by_output(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.astype(jnp.float32), (*x.shape[:-1], n))

    return GpuWeight(
        words=tuple(_planes(codes, part, bits, span) for part in parts(bits)),
        scale=jnp.swapaxes(by_output(scale) * jnp.float32(unit), -1, -2),
        zero=None if zero is None else jnp.swapaxes(by_output(zero) / jnp.float32(unit), -1, -2),
        in_scale=None if in_scale is None else in_scale.astype(jnp.float32),
        layer=None,
        levels=whole,
        unit=unit,
        bits=bits,
        span=span,
        k=k,
    )


def from_tensor(w: PackedTensor) -> GpuWeight:
    """Returns a tensor of a packed file for the kernel.

    Raises:
      FormatError: damaged codes.
      QuantizerError: see `prepack`; or an adapter, which the kernel does not add.
    """
    if w.adapter is not None:
        raise QuantizerError("the kernel adds no adapter", "multiply by tensor.without_adapter(), and add its product")

    def put(x: np.ndarray | None) -> jax.Array | None:
        return None if x is None else jnp.asarray(x)

    codes = jnp.asarray(np.ascontiguousarray(w.codes().T))
    levels = tuple(float(level) for level in w.levels)
    return _prepack(codes, jnp.asarray(w.scale), levels, put(w.zero), put(w.in_scale))


_prepack = jax.jit(prepack, static_argnums=2)


def codes_of(w: GpuWeight) -> jax.Array:
    """Returns the codes u8[*s n k] again."""
    total = None
    for words, part in zip(w.words, w.parts, strict=True):
        planes = HALFWORD // part.bits
        turned = jax.lax.bitcast_convert_type(words, jnp.uint16) ^ jnp.uint16(TURNED)
        blocked = turned.reshape(*words.shape[:-1], -1, 1, w.span)
        shifts = jnp.asarray(_shifts(part))
        shifts = shifts.reshape((1,) * (blocked.ndim - 2) + (planes, 1))
        fields = ((blocked >> shifts) & jnp.uint16((1 << part.bits) - 1)).astype(jnp.uint8) * jnp.uint8(part.weight)
        codes = fields.reshape(*words.shape[:-1], -1)[..., : w.k]
        total = codes if total is None else total + codes
    assert total is not None
    return total


def _planes(codes: jax.Array, part: Part, bits: int, span: int) -> jax.Array:
    """The bits of a part of codes u8[*s n k], i16[*s n halfwords]; inputs are filled up to whole blocks with code 0."""
    *rows, k = codes.shape
    size, planes = block(bits, span), HALFWORD // part.bits
    filled = jnp.pad(codes, [(0, 0)] * len(rows) + [(0, -k % size)])
    fields = (filled // jnp.uint8(part.weight)) & jnp.uint8((1 << part.bits) - 1)
    blocked = fields.reshape(*rows, -1, planes, span).astype(jnp.uint16)
    shifts = jnp.asarray(_shifts(part))
    words = jnp.sum(blocked << shifts.reshape((1,) * (len(rows) + 1) + (planes, 1)), axis=-2, dtype=jnp.uint16)
    return jax.lax.bitcast_convert_type(words ^ jnp.uint16(TURNED), jnp.int16).reshape(*rows, -1)


def _shifts(part: Part) -> np.ndarray:
    """Where the field of each plane begins in a halfword, u16."""
    fields = HALFWORD // part.bits
    return np.array([field_of(plane, fields) * part.bits for plane in range(fields)], np.uint16)
