"""How the programs of this package are compiled: soon, as each runs a few times a layer and the model is done."""

import functools
from typing import Any

import jax

QUICKLY: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""On a GPU XLA compiles and times dozens of tilings of every product that it meets, seconds for each shape, which one
pass over a model never earns back. Without that search products are cuBLAS's, by its own choice."""

jit = functools.partial(jax.jit, compiler_options=QUICKLY)
"""`jax.jit` that looks for no faster tilings. What it makes can be called by other programs, but not inside of them."""
