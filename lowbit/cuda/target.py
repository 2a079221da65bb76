"""Makes the handler that launches compiled kernels known to jax, and kernels known to it."""

import ctypes
import functools
from pathlib import Path

import jax

from lowbit.errors import KernelError
from lowbit.ffi.handler import compiled
from lowbit.kernels import build

SOURCE = Path(__file__).with_name("launch.cc")
TARGET = "lowbit_cuda_product"


@functools.cache
def register() -> ctypes.CDLL:
    """Makes the target known to jax, once a process, and returns the library of its handler.

    Raises:
      KernelError: it is not there and cannot be compiled, or cannot be loaded.
    """
    try:
        path = compiled(SOURCE, ("-ldl",))
    except (build.BuildError, OSError) as error:
        raise KernelError(
            f"kernels cannot be launched from jax: {error}", "install a C++ compiler (g++ or clang++)"
        ) from error
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", "delete it; it is then compiled again") from error
    library.lb_cuda_add.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    library.lb_cuda_add.restype = None
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.lb_cuda_product), platform="CUDA")
    return library


def add(name: str, image: bytes) -> None:
    """Gives the handler the machine code of a kernel under a name that says all that it was made from."""
    register().lb_cuda_add(name.encode(), image, len(image))
