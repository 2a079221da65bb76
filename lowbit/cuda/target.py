"""Makes the handler that launches compiled kernels known to jax, and kernels known to it."""

import ctypes
import functools
from pathlib import Path

import jax

from lowbit.ffi.handler import loaded

SOURCE = Path(__file__).with_name("launch.cc")
TARGET = "lowbit_cuda_product"
NORMED_TARGET = "lowbit_cuda_normed_product"
ATTENTION_TARGET = "lowbit_cuda_attention"
STEP_TARGET = "lowbit_cuda_step"


@functools.cache
def register() -> ctypes.CDLL:
    """Makes all targets known to jax, once a process, and returns the library of their handlers.

    Raises:
      KernelError: it is not there and cannot be compiled, or cannot be loaded.
    """
    driver = SOURCE.with_name("driver.h").read_text(encoding="utf-8")
    library = loaded(SOURCE, "kernels cannot be launched", ("-ldl",), (driver,))
    library.lb_cuda_add.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    library.lb_cuda_add.restype = None
    for name, handler in (
        (TARGET, library.lb_cuda_product),
        (NORMED_TARGET, library.lb_cuda_normed_product),
        (ATTENTION_TARGET, library.lb_cuda_attention),
        (STEP_TARGET, library.lb_cuda_step),
    ):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="CUDA")
    return library


def add(name: str, image: bytes) -> None:
    """Gives the handler the machine code of a kernel under a name that says all that it was made from."""
    register().lb_cuda_add(name.encode(), image, len(image))
