"""Kernels in CUDA C++: their sources as one text each, compiled once a process, and known to the handlers by a name."""

import functools
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

from lowbit.cuda import compiler, target
from lowbit.errors import KernelError

CAPABILITY = 9
"""Of the GPUs that they are made for: H100 and H200."""
SHARED = 227 << 10
"""Bytes of shared memory of a block of threads, at most."""
PROCESSORS = 132
"""Of an H100."""


@functools.cache
def available() -> bool:
    """Returns whether kernels can run on the default device; where only a compiler is missing, it says so once."""
    device = jax.devices()[0]
    if device.platform != "gpu" or not str(getattr(device, "compute_capability", "")).startswith(f"{CAPABILITY}."):
        return False
    try:
        compiler.library()
        target.register()
    except KernelError as error:
        warnings.warn(f"packed products take a slower kernel: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


def processors() -> int:
    """Returns how many multiprocessors the default device has: as many blocks of any size are there at once."""
    return int(getattr(jax.devices()[0], "core_count", PROCESSORS))


@functools.cache
def source(path: Path) -> str:
    """Returns a kernel and what it includes, as one text."""
    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(r'#include "(.+)"\n', lambda found: source(path.with_name(found[1])), text)


def known(path: Path, defines: Mapping[str, int]) -> str:
    """Returns the name under which handlers know a kernel, compiled for the default device with these definitions.

    Raises:
      KernelError: no compiler, or what it says.
    """
    return _known(path, tuple(defines.items()), architecture())


@functools.cache
def _known(path: Path, defines: tuple[tuple[str, int], ...], architecture: str) -> str:
    name = hashlib.sha256(f"{source(path)}{defines}{architecture}".encode()).hexdigest()[:32]
    target.add(name, compiler.compiled(source(path), dict(defines), architecture))
    return name


def architecture() -> str:
    """Returns that of the default device, as the compiler calls it."""
    return "sm_" + str(jax.devices()[0].compute_capability).replace(".", "")
