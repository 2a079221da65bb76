"""A residual sum and the norm behind it in one kernel of a GPU, which starts two for it otherwise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lowbit.pallas.tiles import power_of_two

NUMBERS_A_WARP = 256
"""8 numbers a thread, of which a sequence's programs have few: it is the way to memory and back that takes its time."""
MOST_WARPS = 8


# A program of its own: it is traced once for all layers.
@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def added_and_normed(
    x: jax.Array, added: jax.Array | None, scale: jax.Array, eps: float, *, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns (x + added, its `RMSNorm`), both [b d] in the dtype of x.

    Args:
      x: the residual stream [b d].
      added: f32[b d], rounded to the dtype of x before it is added; or None.
      scale: f32[d] of the norm: an array of its own, as to cut it out of one of all layers is a kernel, and to find it
        there by a number, which is to be read first, takes half as long.
      eps: of the norm.
      interpret: compute without a GPU.
    """
    b, d = x.shape
    width = power_of_two(d)
    call = pl.pallas_call(
        functools.partial(_kernel, width, d, eps, added is not None),
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype),) * 2,
        grid=(b,),
        compiler_params=plgpu.CompilerParams(num_warps=max(1, min(MOST_WARPS, width // NUMBERS_A_WARP)), num_stages=1),
        interpret=interpret,
        name="added_and_normed",
    )
    result: tuple[jax.Array, jax.Array] = tuple(call(x, *([] if added is None else [added]), scale))
    return result


def _kernel(width: int, d: int, eps: float, adds: bool, x_ref: Any, *refs: Any) -> None:
    *added_ref, scale_ref, sum_ref, normed_ref = refs
    row = pl.program_id(0)
    at = jax.lax.broadcasted_iota(jnp.int32, (width,), 0)
    inside = at < d

    def load(ref: Any, *index: Any) -> jax.Array:
        whole = ref.at[(*(jnp.full_like(at, i) for i in index), at)]
        return plgpu.load(whole, mask=inside, other=jnp.zeros((), ref.dtype))

    x = load(x_ref, row)
    if adds:
        x = x + load(added_ref[0], row).astype(x.dtype)
    wide = x.astype(jnp.float32)
    mean = jnp.sum(wide * wide, axis=0) * jnp.float32(1 / d)
    normed = wide * jax.lax.rsqrt(mean + jnp.float32(eps)) * load(scale_ref)
    for ref, numbers in ((sum_ref, x), (normed_ref, normed.astype(x.dtype))):
        plgpu.store(ref.at[jnp.full_like(at, row), at], numbers, mask=inside)
