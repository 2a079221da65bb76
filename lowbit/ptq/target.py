"""What a method rounds to: a grid by name, a width and a granularity, as a quantizer and as the config's section."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics import groups, scales, ste
from lowbit.numerics.grids import TERNARY_BITS
from lowbit.numerics.groups import Granularity
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import Quantizer, State, paretoq, rtn
from lowbit.numerics.quantizers import doubled as with_doubled_scales
from lowbit.numerics.quantizers.codebook import codebook, nf4, power_levels
from lowbit.ptq.ranges import RANGES, with_zero

SCALE_DTYPE = jnp.float16
"""Of scales and zero points, as packed files hold them."""

_WHOLE = tuple(float(b) for b in range(2, 9))

GRIDS: dict[str, tuple[float, ...]] = {
    "integer": (1.0, TERNARY_BITS, *_WHOLE),
    "zero_point": _WHOLE,
    "float_zero": _WHOLE,
    "paretoq": (1.0, TERNARY_BITS, 2.0, 3.0, 4.0),
    "nf4": (4.0,),
    "power": _WHOLE[:3],
    "free": (1.0, TERNARY_BITS, *_WHOLE),
    "vectors": (1.0, 2.0, 3.0, 4.0, 8.0),
}
"""The widths of each grid. integer: symmetric, with a zero level (signs alone at 1 bit). zero_point: codes from 0, an
integer zero point and a scale a group. float_zero: the same with a zero point of any value. paretoq: binary, stretched
ternary, half-integers at 2 bits, integers at 3 and 4. nf4: NormalFloat. power: powers of two. free: levels learned a
matrix. vectors: codes of several weights."""

_CONFIG_METHODS = {"integer": "rtn", "zero_point": "rtn", "paretoq": "paretoq", "nf4": "nf4"}
"""What a config calls the method of a grid."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What kernels become. Hashable, so that programs compiled for one target serve all kernels of a shape.

    Attributes:
      grid: a name of `GRIDS`.
      bits: width of a code.
      granularity: which weights share a scale.
      range: a name of `lowbit.ptq.ranges.RANGES`: where scales begin.
      quantizer: of the grid; None for "free" and "vectors", whose levels come from the weights.
      doubled: whether scales are quantized once more (`numerics.quantizers.doubled`).
    """

    grid: str
    bits: float
    granularity: Granularity
    range: str
    quantizer: Quantizer | None
    doubled: bool = False

    @property
    def levels(self) -> int:
        """How many values a code has."""
        return 3 if self.bits == TERNARY_BITS else 2 ** int(self.bits)

    def at(self, bits: float) -> "Target":
        """Returns the same at another width; raises as `make_target`."""
        if bits == self.bits:
            return self
        return make_target(self.grid, bits, self.granularity, self.range, self.doubled)

    def section(self) -> dict[str, Any] | None:
        """Returns what the section `quant` of a config says of this target; None where no config can name the grid."""
        if self.grid not in _CONFIG_METHODS:
            return None
        return {
            "method": _CONFIG_METHODS[self.grid],
            "bits": float(self.bits),
            "granularity": self.granularity,
            "symmetric": self.grid != "zero_point",
            "scale_init": self.range,
            "double_quant": self.doubled,
        }


@functools.cache  # a quantizer is its functions: programs compiled for one target would not serve an equal one
def make_target(grid: str, bits: float, granularity: Granularity, range: str, doubled: bool = False) -> Target:
    """Returns the target that these names describe.

    Raises:
      QuantizerError: an unknown grid, range or granularity, a width that the grid has not, or scales that cannot be
        quantized once more.
    """
    if grid not in GRIDS:
        raise QuantizerError(f"unknown grid {grid!r}", nearest(grid, GRIDS))
    if range not in RANGES:
        raise QuantizerError(f"unknown range {range!r}", nearest(range, RANGES))
    groups.check_granularity(granularity)
    if float(bits) not in GRIDS[grid]:
        widths = ", ".join(f"{width:g}" for width in GRIDS[grid])
        raise QuantizerError(f"the grid {grid!r} has no {bits:g} bits", f"choose from {widths}")
    quantizer = _quantizer(grid, bits, granularity, range)
    if doubled:
        if quantizer is None:
            raise QuantizerError(f"the grid {grid!r} has no scales of groups", "leave out --double-quant")
        quantizer = with_doubled_scales(quantizer)
    return Target(grid, bits, granularity, range, quantizer, doubled)


def _quantizer(grid: str, bits: float, granularity: Granularity, range: str) -> Quantizer | None:
    match grid:
        case "integer":
            return rtn(bits, granularity, scale_init=range, scale_dtype=SCALE_DTYPE)
        case "paretoq":
            return paretoq(bits, granularity, scale_init=range, scale_dtype=SCALE_DTYPE)
        case "zero_point":
            base = rtn(bits, granularity, symmetric=False, scale_dtype=SCALE_DTYPE)
            return base._replace(init=with_zero(int(bits), granularity, range, SCALE_DTYPE))
        case "float_zero":
            return float_zero(int(bits), granularity, range)
        case "nf4":
            return nf4(granularity, SCALE_DTYPE)
        case "power":
            return codebook(f"power{int(bits)}", power_levels(int(bits)), granularity, SCALE_DTYPE)
    return None


def float_zero(bits: int, granularity: Granularity, range: str = "max") -> Quantizer:
    """Codes 0 .. 2^bits - 1 times a scale, about a zero point of any value (stored like the scale).

        No level need be 0. `fake` passes its gradient to w everywhere.

    Raises:
      QuantizerError: as `rtn`.
    """
    base = rtn(bits, granularity, symmetric=False, scale_dtype=SCALE_DTYPE)
    assert base.grid is not None
    grid, top = base.grid, float(2**bits - 1)

    def encode(w: Float[Array, "*s k n"], state: State) -> QTensor:
        scale = scales.stored(state["scale"], SCALE_DTYPE)
        zero = state["zero"].astype(SCALE_DTYPE)
        units = scales.in_units_of(scale, w) + zero.astype(jnp.float32)[..., None, :]
        codes = groups.merge(jnp.clip(jnp.round(units), 0.0, top)).astype(jnp.uint8)
        return QTensor(codes, scale.astype(SCALE_DTYPE), zero, grid)

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return ste.passthrough(w, encode(w, state).decode().astype(w.dtype))

    init = with_zero(bits, granularity, range, SCALE_DTYPE)
    return Quantizer(f"float_zero{bits}", grid, init, encode, fake, granularity)
