"""Makes the handler of the CPU's products known to jax."""

import functools
from pathlib import Path

import jax

from lowbit.ffi.handler import loaded
from lowbit.kernels import build, library

SOURCE = Path(__file__).with_name("matmul.cc")
TARGET = "lowbit_matmul"


@functools.cache
def register() -> str:
    """Makes the target known to jax, once a process, and returns its name.

    The handler is compiled at first use into the cache folder, as the interface belongs to the version of jax.

    Raises:
      KernelError: neither it nor the kernels are there, and they cannot be compiled.
    """
    # The handler names the kernels by their place: both sides must hold the same library.
    kernels = library.library_path()
    arguments = f"-I{build.SOURCES}", str(kernels)
    handler = loaded(SOURCE, "the kernels cannot be called", arguments, (build.source_digest(),)).lb_ffi_matmul
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return TARGET
