"""CUDA C++ to machine code, by NVIDIA's compiler library, which comes with jax for GPUs."""

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lowbit.errors import KernelError

NAMES = ("libnvrtc.so.13", "libnvrtc.so.12")
DRIVER = "libcuda.so.1"
FLAGS = ("--std=c++17",)


def compiled(source: str, defines: Mapping[str, int], architecture: str) -> bytes:
    """Returns the machine code of a source.

    Args:
      source: all of it; it includes nothing.
      defines: what the preprocessor knows.
      architecture: such as "sm_90".

    Raises:
      KernelError: no compiler library, or what it says.
    """
    nvrtc = library()
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"product.cu", 0, None, None):
        raise KernelError("NVIDIA's compiler library takes no source", "check the installation of jax[cuda13]")
    try:
        flags = (*FLAGS, f"--gpu-architecture={architecture}", *(f"-D{name}={v}" for name, v in defines.items()))
        texts = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        if nvrtc.nvrtcCompileProgram(program, len(flags), texts):
            said = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
            raise KernelError(f"the kernel does not compile for {architecture}: {said}", "take another implementation")
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the compiler library: that of NVIDIA's Python packages, or one of the system.

    Raises:
      KernelError: there is none, or none whose machine code the driver takes.
    """
    newest = driver_version()
    for path in _candidates():
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue
        # Of the same major version a driver takes machine code of compilers that are newer than itself.
        if _version(found) <= newest:
            return found
    raise KernelError(
        f"none of {', '.join(NAMES)} is there for a driver of CUDA {newest}",
        "install jax[cuda13] or the toolkit of CUDA, of no newer major version than the driver",
    )


def driver_version() -> int:
    """Returns the major version of CUDA that the driver belongs to; 0 where there is no driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value // 1000


def _version(nvrtc: ctypes.CDLL) -> int:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value


def _candidates() -> Iterator[str]:
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages.submodule_search_locations or ()) if packages else ():
        for name in NAMES:
            yield from sorted(map(str, Path(folder).glob(f"*/lib/{name}")))
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    for name in NAMES:
        yield str(home / "lib64" / name)
        yield name


def _read(size_of: Callable[..., Any], read: Callable[..., Any], program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw
