"""What it takes a GPU to read bytes and do nothing with them: no product of as many bytes can be faster than that."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lowbit.bench import gpu_products

ROWS, WORDS, WARPS = 4, 512, 4
"""Of a program: 64 bytes a thread, all on their way at once. Other sizes took as long, within a tenth."""


class Reading:
    """A compiled loop over arrays of so many bytes, in all more than the caches hold, each of which a kernel reads.

    Attributes:
      nbytes: that one kernel reads: whole programs' worth of what was asked for, at least one.
    """

    def __init__(self, nbytes: int):
        rows = max(1, nbytes // (4 * WORDS * ROWS)) * ROWS
        self.nbytes = 4 * WORDS * rows
        copies = min(gpu_products.MOST_COPIES, max(2, math.ceil(gpu_products.TOTAL_BYTES / self.nbytes)))
        self._arrays = [jnp.full((rows, WORDS), number, jnp.int32) for number in range(copies)]
        self._kernels = gpu_products.TURNS * copies
        read = functools.partial(_read, interpret=jax.devices()[0].platform != "gpu")

        def run(arrays: list[jax.Array]) -> list[jax.Array]:
            start = [jnp.zeros((rows, 1), jnp.int32) for _ in arrays]
            return jax.lax.fori_loop(0, gpu_products.TURNS, lambda _, found: [read(x) for x in arrays], start)

        self._run = jax.jit(run)

    def seconds(self) -> float:
        """Returns the time of one kernel; the first call compiles."""
        began = time.perf_counter()
        jax.block_until_ready(self._run(self._arrays))
        return (time.perf_counter() - began) / self._kernels


# Jitted once for all arrays: each call would be compiled on its own.
@functools.partial(jax.jit, static_argnames="interpret")
def _read(x: jax.Array, *, interpret: bool) -> jax.Array:
    """The sums of rows of words i32[n words], i32[n 1]: whatever needs all of them and little else."""
    call = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((len(x), 1), jnp.int32),
        grid=(len(x) // ROWS,),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="reading",
    )
    result: jax.Array = call(x)
    return result


def _kernel(x_ref: Any, y_ref: Any) -> None:
    first = pl.program_id(0) * ROWS
    row = first + jax.lax.broadcasted_iota(jnp.int32, (ROWS, WORDS), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (ROWS, WORDS), 1)
    sums = jnp.sum(plgpu.load(x_ref.at[row, column]), axis=1, keepdims=True, dtype=jnp.int32)
    row = first + jax.lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0)
    plgpu.store(y_ref.at[row, jnp.zeros_like(row)], sums)
