"""Compiles handlers that XLA calls, against the headers of the installed jax, at first use, and loads them."""

import ctypes
import hashlib
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax

from lowbit.errors import KernelError
from lowbit.kernels import build, library
from lowbit.locks import one_at_a_time

FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")


def loaded(source: Path, purpose: str, arguments: Sequence[str] = (), depends: Sequence[str] = ()) -> ctypes.CDLL:
    """Returns the library of a handler, open; `compiled` if it is not there.

    Args:
      source: its C++ file.
      purpose: what cannot be done without it, in the words of an error.
      arguments: as of `compiled`.
      depends: likewise.

    Raises:
      KernelError: it cannot be compiled, or loaded.
    """
    try:
        path = compiled(source, arguments, depends)
    except (build.BuildError, OSError) as error:
        raise KernelError(f"{purpose} from jax: {error}", "install a C++ compiler (g++ or clang++)") from error
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", "delete it; it is then compiled again") from error


def compiled(source: Path, arguments: Sequence[str] = (), depends: Sequence[str] = ()) -> Path:
    """Returns the library of a handler, compiled into the cache folder if it is not there.

    Args:
      source: its C++ file.
      arguments: of the compiler, beside those for jax's headers.
      depends: what else the library is made from; it is compiled again when that changes, or jax does.

    Raises:
      BuildError: no compiler, or what it says.
      OSError: the cache folder cannot be written.
    """
    digest = hashlib.sha256(source.read_bytes())
    for word in (jax.__version__, *arguments, *depends):
        digest.update(b"\0" + word.encode())
    path = library.cache_folder() / f"ffi-{digest.hexdigest()[:16]}" / f"liblowbit_{source.stem}.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.parent / "lock"):
        if not path.exists():
            part = path.with_suffix(".part")
            headers = f"-I{jax.ffi.include_dir()}"
            build.run_all([[*_compiler(), *FLAGS, headers, str(source), *arguments, "-o", str(part)]])
            part.replace(path)
    return path


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise build.BuildError(
        f"no C++ compiler: {named[0]} is not there" if named else "no C++ compiler: neither c++, g++ nor clang++"
    )
