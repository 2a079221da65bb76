"""Compiles the handler against the headers of the installed jax, and registers it."""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
from pathlib import Path

import jax

from lowbit.errors import KernelError
from lowbit.kernels import build, library
from lowbit.locks import one_at_a_time

SOURCE = Path(__file__).with_name("matmul.cc")
TARGET = "lowbit_matmul"
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")


@functools.cache
def register() -> str:
    """Makes the target known to jax, once a process, and returns its name.

    The handler is compiled at first use into the cache folder, as the interface belongs to the version of jax.

    Raises:
      KernelError: neither it nor the kernels are there, and they cannot be compiled.
    """
    kernels = library.library_path()
    path = _compiled(kernels)
    try:
        handler = ctypes.CDLL(str(path)).lb_ffi_matmul
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", "delete it; it is then compiled again") from error
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return TARGET


def _compiled(kernels: Path) -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes())
    for word in (jax.__version__, str(kernels), build.source_digest()):
        digest.update(word.encode())
    path = library.cache_folder() / f"ffi-{digest.hexdigest()[:16]}" / "liblowbit_ffi.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent / "lock"):
            if not path.exists():
                part = path.with_suffix(".part")
                headers = (f"-I{jax.ffi.include_dir()}", f"-I{build.SOURCES}")
                # The handler names the kernels by their place: both sides must hold the same library.
                build.run_all([[*_compiler(), *FLAGS, *headers, str(SOURCE), str(kernels), "-o", str(part)]])
                part.replace(path)
    except (build.BuildError, OSError) as error:
        raise KernelError(
            f"the kernels cannot be called from jax: {error}", "install a C++ compiler (g++ or clang++)"
        ) from error
    return path


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise build.BuildError(
        f"no C++ compiler: {named[0]} is not there" if named else "no C++ compiler: neither c++, g++ nor clang++"
    )
