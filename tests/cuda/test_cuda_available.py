"""When the CUDA kernel is there, and what is said where it is not."""

import jax
import pytest

from lowbit.cuda import available, compiler
from lowbit.errors import KernelError


def test_is_not_available_without_a_gpu_or_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not available.__wrapped__()
    monkeypatch.setattr(compiler, "_candidates", lambda: iter(()))
    with pytest.raises(KernelError, match=r"none of libnvrtc.so.13, .* is there\n  -> install jax\[cuda13\]"):
        compiler.library.__wrapped__()

    class Gpu:
        platform, compute_capability = "gpu", "9.0"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    monkeypatch.setattr(compiler, "library", compiler.library.__wrapped__)
    with pytest.warns(RuntimeWarning, match="packed products take a slower kernel: none of libnvrtc"):
        assert not available.__wrapped__()
