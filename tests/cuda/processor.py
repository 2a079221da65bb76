"""Kernels in CUDA C++, compiled for a processor, with what stands for a GPU in host.h."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas", "-DLB_HOST")
"""Not as it is for a GPU: there the compiler of CUDA decides what is fused, here nothing is."""


def run_here(
    source: Path,
    defines: Mapping[str, int],
    folder: Path,
    arrays: Sequence[np.ndarray | None],
    sizes: tuple[int, int, int, int],
) -> None:
    """Compiles a kernel, and runs it with arrays, as many blocks, blocks of a cluster, threads, and shared bytes."""
    library = folder / f"{source.stem}.so"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "clang++"
    named = [f"-D{name}={value}" for name, value in defines.items()]
    (whole := folder / "whole.cc").write_text(f'#include "host.h"\n#include "{source}"\n#include "run.h"\n')
    subprocess.run([compiler, *FLAGS, *named, f"-I{HERE}", str(whole), "-o", str(library)], check=True)
    pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
    places = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
    ctypes.CDLL(str(library)).run(places, *sizes)
