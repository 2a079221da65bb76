"""Where a measurement was taken: commit, libraries, devices, and how fast these multiply at best."""

import os
import statistics
import time
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib
import optax

from lowbit.train.provenance import provenance


def machine(seed: int) -> dict[str, Any]:
    """Returns what a reader of the numbers needs to know about where they come from."""
    return provenance(seed) | {
        "backend": jax.default_backend(),
        "jaxlib_version": jaxlib.__version__,
        "flax_version": flax.__version__,
        "optax_version": optax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def matmul_peak(size: int, repeats: int, chain: int = 16) -> float:
    """Returns FLOP/s of bfloat16 square matrix products on one device: the median of `repeats` timings.

    Each timing is a chain of products inside one program, so that starting it costs nothing.

    Args:
      size: n of [n n] @ [n n]; 8192 fills an H100.
      repeats: timings.
      chain: products in a timing.
    """
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    b = b / jnp.bfloat16(size**0.5)  # the product keeps its size

    @jax.jit
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, chain, lambda _, x: x @ b, a)

    product(a, b).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return chain * 2 * size**3 / statistics.median(seconds)


def peak_memory() -> int | None:
    """Returns the most bytes that the first device ever had in use in this process; None where it does not say."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else int(stats["peak_bytes_in_use"])
