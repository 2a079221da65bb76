"""Makes the handler of the CPU's products known to jax."""

import ctypes
import functools
from pathlib import Path

import jax

from lowbit.errors import KernelError
from lowbit.ffi.handler import compiled
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
    try:
        path = compiled(SOURCE, (f"-I{build.SOURCES}", str(kernels)), (build.source_digest(),))
    except (build.BuildError, OSError) as error:
        raise KernelError(
            f"the kernels cannot be called from jax: {error}", "install a C++ compiler (g++ or clang++)"
        ) from error
    try:
        handler = ctypes.CDLL(str(path)).lb_ffi_matmul
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", "delete it; it is then compiled again") from error
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return TARGET
