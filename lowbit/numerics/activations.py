"""Quantizers of activations: inputs of linear layers, keys, values. Scales come from the numbers or from calibration.

Each is a `Quantizer` of arrays `x [*b t k]`, t tokens of k numbers, and obeys the laws of those of weights:

    q = dynamic(8)                           # a scale a token, from the token itself
    x_hat = q.fake(x, q.init(x))             # what training computes with, by a straight-through estimator
    i = integers(q.encode(x, q.init(x)))     # what an integer product multiplies: x_hat = (numbers - zero) * scale

    q = static(8)                            # one scale for all, from a range that calibration has found
    found = functools.reduce(widest, (range_of(x, "tensor") for x in batches))
    state = q.init(jnp.stack(found))         # or `range_state` of any other estimate of low and high
    x_hat = q.fake(x, state)

At 8 bits, symmetric, `dynamic` gives the codes and scales of the runtimes' integer path bit for bit
(`lowbit.kernels.reference.quantize_activations`); with float16 scales, those of the key-value cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Shaped

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics import scales, ste
from lowbit.numerics.grids import Grid, freeze, integer
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State

AXES = {"token": (-1,), "channel": (-2,), "tensor": (-2, -1)}
"""By granularity, the axes of `[*b t k]` whose numbers share a scale: of one token, of one input of all tokens, of
all tokens. Scales keep them: `[*b t 1]`, `[*b 1 k]`, `[*b 1 1]`."""

WIDTHS = tuple(range(2, 9))
"""Bits of a code. Below 4 no language model is known to hold on to its predictions."""

VARIANTS = ("fixed", "reference")


class Range(NamedTuple):
    """Where numbers lie: `low <= 0 <= high`, f32, in the shape of scales."""

    low: Any
    high: Any


class Integers(NamedTuple):
    """Activations as an integer product takes them, `x_hat = (numbers - zero) * scale`.

    Attributes:
      numbers: i8 [*b t k], within +-(2^(bits-1) - 1) where there is no zero.
      scale: [*b t 1], [*b 1 k] or [*b 1 1], in the stored dtype.
      zero: i32, like scale; None where symmetric.
    """

    numbers: Any
    scale: Any
    zero: Any


def dynamic(
    bits: int,
    granularity: str = "token",
    symmetric: bool = True,
    variant: str = "fixed",
    scale_dtype: DTypeLike = jnp.float32,
) -> Quantizer:
    """Rounds by a range that is taken from the numbers themselves, each time.

    Symmetric: whole numbers within +-(2^(b-1) - 1) times `max|x| / (2^(b-1) - 1)`. Min-max: codes 0 .. 2^b - 1, a scale
    `(high - low) / (2^b - 1)` over a range that includes 0, and a whole zero point, so that 0 stays 0. Nothing is
    clipped, so the gradient passes everywhere. A group of zeros has scale 0 where scales are float32.

    variant="reference" is LLM-QAT's code (arXiv 2305.17888): symmetric, `round(x s) / (s + 1e-6)` with
    `s = (2^(b-1) - 1) / (max|x| + 1e-6)`; min-max, `round((x - min) / (max - min + 1e-8) (2^b - 1))` steps above min,
    so that 0 is no level. Its gradient is zero at |x| >= 2, in absolute units, whatever the scale.

    "channel" and "tensor" take the range of all tokens of a batch: one is rounded by others, later ones too. They serve
    comparison; what writes text needs "token", or `static`.

    Args:
      bits: 2 to 8.
      granularity: "token", "channel" or "tensor", see `AXES`.
      symmetric: False for min-max.
      variant: "fixed" or "reference".
      scale_dtype: of scales and zero points. Nobody stores those of a linear layer's input: they stay float32.

    Raises:
      QuantizerError: another width, granularity, variant or dtype.
    """
    _check(bits, granularity, scale_dtype)
    if variant not in VARIANTS:
        raise QuantizerError(f"unknown variant {variant!r} of activations", nearest(variant, VARIANTS))
    make = _fixed if variant == "fixed" else _reference
    return make(bits, granularity, symmetric, scale_dtype)._replace(dynamic=True)


def static(
    bits: int, granularity: str = "tensor", symmetric: bool = True, scale_dtype: DTypeLike = jnp.float32
) -> Quantizer:
    """Rounds by a range that was found before, `{"scale", "zero"}` of `range_state`; what lies outside is clipped.

    Levels as `dynamic` has them. The gradient passes inside of the range and is 0 outside; the range does not learn.

    Args:
      bits: 2 to 8.
      granularity: "tensor" or "channel"; tokens that are yet to come have no range.
      symmetric: False for min-max.
      scale_dtype: of scales and zero points.

    Raises:
      QuantizerError: another width, granularity or dtype; when used, a state without a range.
    """
    _check(bits, granularity, scale_dtype)
    if granularity == "token":
        raise QuantizerError("a static range for each token is no range", "choose 'tensor' or 'channel', or dynamic")
    base = _fixed(bits, granularity, symmetric, scale_dtype)

    def fake(x: Float[Array, "*b t k"], state: State) -> Float[Array, "*b t k"]:
        _check_calibrated(state)
        x_hat = base.fake(*jax.lax.stop_gradient((x, state)))
        scale, zero = _stored(jax.lax.stop_gradient(state), scale_dtype)
        low, high = _ends(bits, symmetric)
        wide = x.astype(jnp.float32)
        inside = (wide >= (low - zero) * scale) & (wide <= (high - zero) * scale)
        return ste.passthrough_inside(x, x_hat, inside)

    def encode(x: Float[Array, "*b t k"], state: State) -> QTensor | Array:
        _check_calibrated(state)
        return base.encode(x, state)

    return base._replace(name=f"{base.name}_static", fake=fake, encode=encode)


def range_of(x: Float[Array, "*b t k"], granularity: str) -> Range:
    """Returns the least and the largest number of each scale's share of x, and 0 where all are on one side of it."""
    wide = x.astype(jnp.float32)
    low, high = (f(wide, axis=AXES[granularity], keepdims=True) for f in (jnp.min, jnp.max))
    return Range(jnp.minimum(low, 0.0), jnp.maximum(high, 0.0))


def widest(a: Range, b: Range) -> Range:
    """Returns the range that holds both."""
    return Range(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))


def range_state(found: Range, bits: int, symmetric: bool, scale_dtype: DTypeLike = jnp.float32) -> State:
    """Returns the state `{"scale"}`, or `{"scale", "zero"}` of min-max, that spans a range; f32, in its shape."""
    low, high = _ends(bits, symmetric)
    if symmetric:
        return {"scale": _quotient(jnp.maximum(-found.low, found.high), high)}
    scale = _quotient(found.high - found.low, high - low)
    kept = _kept(scale, scale_dtype)
    return {"scale": scale, "zero": jnp.where(kept > 0, jnp.round(-found.low / jnp.where(kept > 0, kept, 1.0)), 0.0)}


def integers(q: QTensor) -> Integers:
    """Returns what `encode` of a quantizer of this module gave, as an integer product takes it.

    Codes are shifted by half their number, so that 8-bit ones fit a signed byte.
    """
    half = len(q.grid.levels) // 2
    numbers = (q.codes.astype(jnp.int32) - half).astype(jnp.int8)
    zero = None if q.zero is None else q.zero.astype(jnp.int32) - half
    if not q.transposed:
        return Integers(numbers, q.scale, zero)
    return Integers(_swap(numbers), _swap(q.scale), None if zero is None else _swap(zero))


def _check(bits: int, granularity: str, scale_dtype: DTypeLike) -> None:
    if bits not in WIDTHS or isinstance(bits, bool):
        raise QuantizerError(f"activations cannot be rounded to {bits!r} bits", "choose an integer from 2 to 8")
    if granularity not in AXES:
        raise QuantizerError(f"activations have no granularity {granularity!r}", nearest(str(granularity), AXES))
    scales.check_dtype(scale_dtype, "a scale")


def _check_calibrated(state: State) -> None:
    if "scale" not in state:
        raise QuantizerError(
            "a static range was never calibrated", "calibrate it (`range_of` some batches), or round dynamically"
        )


def _ends(bits: int, symmetric: bool) -> tuple[float, float]:
    """The lowest and the highest whole number that stands for a value."""
    reach = float(2 ** (bits - 1) - 1)
    return (-reach, reach) if symmetric else (0.0, float(2**bits - 1))


def _quotient(x: Float32[Array, "*dims"], number: float) -> Float32[Array, "*dims"]:
    """`x / number` for x >= 0, correctly rounded: a divisor that depends on x is none that compilers invert."""
    return x / jnp.maximum(jnp.float32(number), x * 1e-37)


def _kept(scale: Float32[Array, "*dims"], dtype: DTypeLike) -> Float32[Array, "*dims"]:
    """The scale as it is stored; one that is not stored in 16 bits needs no floor."""
    return scale if jnp.dtype(dtype) == jnp.float32 else scales.stored(scale, dtype)


def _stored(state: State, dtype: DTypeLike) -> tuple[Array, Array | float]:
    zero = jnp.round(state["zero"]) if "zero" in state else 0.0
    return _kept(state["scale"], dtype), zero


def _fixed(bits: int, granularity: str, symmetric: bool, scale_dtype: DTypeLike) -> Quantizer:
    """Both quantizers but for what their gradients are, and whether their range is taken anew."""
    low, high = _ends(bits, symmetric)

    def init(x: Float[Array, "..."]) -> State:
        return range_state(range_of(x, granularity), bits, symmetric, scale_dtype)

    def numbers(x: Float[Array, "*b t k"], state: State) -> Float32[Array, "*b t k"]:
        scale, zero = _stored(state, scale_dtype)
        wide = x.astype(jnp.float32)
        # As in `scales.in_units_of`: a divisor that always is the scale, and no broadcast of it.
        divisor = jnp.where(scale > 0, jnp.maximum(scale, jnp.abs(wide) * 1e-30), 1.0)
        units = jnp.round(jnp.where(scale > 0, wide / divisor, 0.0)) + zero
        return _without_negative_zero(jnp.clip(units, low, high))

    def fake(x: Float[Array, "*b t k"], state: State) -> Float[Array, "*b t k"]:
        scale, zero = _stored(jax.lax.stop_gradient(state), scale_dtype)
        x_hat = (numbers(*jax.lax.stop_gradient((x, state))) - zero) * scale
        return ste.passthrough(x, x_hat.astype(x.dtype))

    def encode(x: Float[Array, "*b t k"], state: State) -> QTensor:
        scale, zero = _stored(state, scale_dtype)
        kept = None if symmetric else jnp.asarray(zero).astype(scale_dtype)
        return _as_qtensor(numbers(x, state), scale.astype(scale_dtype), kept, bits, granularity)

    name = f"activations{bits}_{granularity}" + ("" if symmetric else "_minmax")
    return Quantizer(name, _grid(bits, symmetric), init, encode, fake, granularity)


def _reference(bits: int, granularity: str, symmetric: bool, scale_dtype: DTypeLike) -> Quantizer:
    """LLM-QAT's code; its scale is no longer the reciprocal of what it multiplies by, so the state has both."""
    if jnp.dtype(scale_dtype) != jnp.float32:
        raise QuantizerError("LLM-QAT's code has float32 scales", "set scale_dtype to float32, or variant='fixed'")
    low, high = _ends(bits, symmetric)
    limit = 2.0

    def init(x: Float[Array, "..."]) -> State:
        wide = x.astype(jnp.float32)
        least, most = (f(wide, axis=AXES[granularity], keepdims=True) for f in (jnp.min, jnp.max))
        if symmetric:
            factor = high / (jnp.maximum(-least, most) + 1e-6)
            return {"factor": factor, "scale": 1.0 / (factor + 1e-6)}
        width = most - least + 1e-8
        scale = _quotient(width, high)
        return {"factor": high / width, "scale": scale, "low": least, "zero": -least / scale}

    def numbers(x: Float[Array, "*b t k"], state: State) -> Float32[Array, "*b t k"]:
        wide = x.astype(jnp.float32)
        shifted = wide if symmetric else wide - state["low"]
        return _without_negative_zero(jnp.clip(jnp.round(shifted * state["factor"]), low, high))

    def fake(x: Float[Array, "*b t k"], state: State) -> Float[Array, "*b t k"]:
        x_now, now = jax.lax.stop_gradient((x, state))
        units = numbers(x_now, now)
        x_hat = (units if symmetric else units - now["zero"]) * now["scale"]
        return ste.passthrough_inside(x, x_hat.astype(x.dtype), jnp.abs(x.astype(jnp.float32)) < limit)

    def encode(x: Float[Array, "*b t k"], state: State) -> QTensor:
        zero = None if symmetric else state["zero"]
        return _as_qtensor(numbers(x, state), state["scale"], zero, bits, granularity)

    name = f"llmqat_activations{bits}_{granularity}" + ("" if symmetric else "_minmax")
    return Quantizer(name, _grid(bits, symmetric), init, encode, fake, granularity)


def _grid(bits: int, symmetric: bool) -> Grid:
    """The same as that of weights rounded to nearest; symmetric, its lowest level is never taken."""
    if symmetric:
        return freeze(f"int{bits}", 2**bits, integer(bits))
    return Grid(f"uint{bits}", tuple(float(code) for code in range(2**bits)))


def _without_negative_zero(numbers: Float32[Array, "*dims"]) -> Float32[Array, "*dims"]:
    """-0 as 0: a code could not tell them apart."""
    return jnp.where(numbers == 0, 0.0, numbers)


def _swap(x: Shaped[Array, "*b m n"]) -> Shaped[Array, "*b n m"]:
    return jnp.swapaxes(x, -1, -2)


def _as_qtensor(
    numbers: Float32[Array, "*b t k"], scale: Array, zero: Array | None, bits: int, granularity: str
) -> QTensor:
    grid = _grid(bits, symmetric=zero is None)
    codes = (numbers - grid.levels[0]).astype(jnp.uint8)
    if granularity != "token":
        return QTensor(codes, scale, zero, grid)
    # One scale a token: to the tensor's rule, that groups run along k, tokens are the outputs of [k t].
    return QTensor(_swap(codes), _swap(scale), None if zero is None else _swap(zero), grid, transposed=True)
