"""When the CUDA kernel is there, and what is said where it is not."""

import ctypes
import subprocess
from pathlib import Path

import jax
import pytest

from lowbit.cuda import available, compiler
from lowbit.errors import KernelError
from lowbit.kernels import build


def test_is_not_available_without_a_gpu_or_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not available.__wrapped__()
    monkeypatch.setattr(compiler, "_candidates", lambda: iter(()))
    with pytest.raises(
        KernelError, match=r"none of libnvrtc.so.13, .* is there for a driver of CUDA \d+\n  -> install jax\[cuda13\]"
    ):
        compiler.library.__wrapped__()

    class Gpu:
        platform, compute_capability = "gpu", "9.0"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    monkeypatch.setattr(compiler, "library", compiler.library.__wrapped__)
    with pytest.warns(RuntimeWarning, match="packed products take a slower kernel: none of libnvrtc"):
        assert not available.__wrapped__()


@pytest.fixture
def nvrtc(tmp_path: Path) -> str:
    """A compiler library of version 13.0 that compiles nothing."""
    source, library = tmp_path / "nvrtc.c", tmp_path / "libnvrtc.so.13"
    source.write_text(
        "int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }\n"
        "int nvrtcCreateProgram(void **p, ...) { *p = 0; return 0; }\n"
        "int nvrtcCompileProgram(void *p, int n, const char **flags) { return 6; }\n"
        "int nvrtcGetProgramLogSize(void *p, unsigned long *n) { *n = 9; return 0; }\n"
        'int nvrtcGetProgramLog(void *p, char *to) { for (int i = 0; i < 9; i++) to[i] = "no luck."[i]; return 0; }\n'
        "int nvrtcDestroyProgram(void **p) { return 0; }\n"
    )
    subprocess.run([*build.compiler(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return str(library)


def test_takes_no_compiler_that_is_newer_than_the_driver(nvrtc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_candidates", lambda: iter(["/nowhere/libnvrtc.so.13", nvrtc]))
    monkeypatch.setattr(compiler, "driver_version", lambda: 12)
    with pytest.raises(KernelError, match=r"for a driver of CUDA 12\n  -> .* of no newer major version"):
        compiler.library.__wrapped__()
    monkeypatch.setattr(compiler, "driver_version", lambda: 13)
    assert compiler.library.__wrapped__()._name == nvrtc


def test_says_what_the_compiler_says(nvrtc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "library", lambda: ctypes.CDLL(nvrtc))
    with pytest.raises(KernelError, match="the kernel does not compile for sm_90: no luck"):
        compiler.compiled("", {"TOKENS": 1}, "sm_90")
