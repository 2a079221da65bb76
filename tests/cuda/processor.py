"""Kernels in CUDA C++, compiled for a processor, with what stands for a GPU in host.h."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-Wno-psabi")
"""Not as it is for a GPU: there the compiler of CUDA decides what is fused, here nothing is. Jumps from one stack to
another are no mistake (fibers.h), which some systems' compilers would check."""


def compile_here(source: str, library: Path, arguments: Sequence[str] = ()) -> Path:
    """Compiles C++ into a library, and returns where that is."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "clang++"
    (text := library.with_name(f"{library.name}.cc")).write_text(source)
    subprocess.run([compiler, *FLAGS, "-DLB_HOST", f"-I{HERE}", str(text), *arguments, "-o", str(library)], check=True)
    return library


def compile_kernel(source: str, defines: Mapping[str, int], library: Path) -> Path:
    """Compiles the text of a kernel with these definitions, and what starts it."""
    named = [f"-D{name}={value}" for name, value in defines.items()]
    return compile_here(f'#include "host.h"\n{source}\n#include "run.h"\n', library, named)


def run_here(
    source: Path,
    defines: Mapping[str, int],
    folder: Path,
    arrays: Sequence[np.ndarray | None],
    sizes: tuple[int, int, int, int],
    boxes: Sequence[np.ndarray] = (),
) -> None:
    """Compiles a kernel, and runs it with arrays, as many blocks, blocks of a cluster, threads, and shared bytes.

    Behind the arrays it gets what `boxes_of` returned.
    """
    library = compile_kernel(f'#include "{source}"', defines, folder / f"{source.stem}.so")
    pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
    addresses = [*map(ctypes.addressof, pointers), *(box.ctypes.data for box in boxes)]
    places = (ctypes.c_void_p * len(addresses))(*addresses)
    ctypes.CDLL(str(library)).run(places, *sizes)


def boxes_of(rows: np.ndarray, unit: int, chunks: int) -> np.ndarray:
    """Returns how a kernel copies boxes of 16 rows, as host.h has it: units of some bytes, as many as a chunk has."""
    size = rows.strides[0]
    found = np.zeros(24, np.uint64)
    found = found[(-found.ctypes.data % 64) // 8 :][:16]
    found[:6] = rows.ctypes.data, len(rows), size, unit, 16, size // unit // chunks
    return found
