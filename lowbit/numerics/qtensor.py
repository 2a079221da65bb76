"""QTensor: codes, scales and the grid that gives them meaning."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.numerics import groups, low_rank
from lowbit.numerics.grids import Grid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A quantized kernel.

    Invariants: every code is below `len(grid.levels)`; `scale` and `zero` hold finite values in the dtype that is
    stored; `decode()` is the only meaning the codes have.

    Attributes:
      codes: `[*s k n]`, index into `grid.levels`.
      scale: `[*s g n]`, or `[*s 1 1]` per tensor; the stored dtype.
      zero: like `scale`, in units of the grid; None where the grid needs none.
      grid: the levels (static).
      transposed: the array that this stands for is `[*s n k]`; codes and scales are kept as `[*s k n]`.
      in_scale: `[*s k 1]`, a second factor, of each input; None where there is none. The stored dtype.
      adapter: `low_rank.Factors`, f16 `[*s k r]` and `[*s r n]`, whose product is added; None where there are none.
      coded_scale: `coded_scales.CodedScale`, as which a file holds `scale`; None where it holds `scale` itself.
    """

    # Not annotated as arrays: under eval_shape, vmap and the like, jax rebuilds pytrees around stand-ins for them.
    codes: Any
    scale: Any
    zero: Any
    grid: Grid = dataclasses.field(metadata={"static": True})
    transposed: bool = dataclasses.field(default=False, metadata={"static": True})
    in_scale: Any = None
    adapter: Any = None
    coded_scale: Any = None

    def decode(self) -> Float[Array, "*s a b"]:
        """Returns `(levels[codes] - zero) * scale * in_scale + a b` in float32, in that order of operations.

        The order is part of the format: training's fake-quantization and the packed readers follow it, which is why
        all three agree bit for bit.
        """
        scale = self.scale.astype(jnp.float32)[..., None, :]
        values = groups.split_like(jnp.asarray(self.grid.table())[self.codes], self.scale)
        if self.zero is not None:
            values = values - self.zero.astype(jnp.float32)[..., None, :]
        decoded = groups.merge(values * scale)
        if self.in_scale is not None:
            decoded = decoded * self.in_scale.astype(jnp.float32)
        if self.adapter is not None:
            decoded = low_rank.plus(decoded, *self.adapter)
        return jnp.swapaxes(decoded, -1, -2) if self.transposed else decoded
