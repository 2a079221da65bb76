"""A driver of our own in place of CUDA's: it runs kernels on a processor."""

import ctypes
from collections.abc import Iterator

import jax
import pytest
from processor import HERE, compile_here, compile_kernel

from lowbit import cuda
from lowbit.cuda import compiler, kernels, target
from lowbit.ffi.handler import compiled
from lowbit.generation import whole_step
from lowbit.pallas import product as pallas_product


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """The handler, on a processor and with a driver of our own, in place of that for a GPU."""
    folder = tmp_path_factory.mktemp("driver")
    path = compile_here('#include "driver.cc"\n', folder / "libcuda.so.1", ("-Wl,-soname,libcuda.so.1",))
    fake = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # found by its name from now on
    included = f"-I{target.SOURCE.parent}"
    sources = tuple(target.SOURCE.with_name(name).read_text() for name in ("launch.cc", "driver.h"))
    handler = ctypes.CDLL(str(compiled(HERE / "launch_host.cc", (included, "-ldl"), sources)))
    handler.lb_cuda_add.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]

    def for_a_processor(source: str, defines: dict[str, int], architecture: str) -> bytes:
        return str(compile_kernel(source, defines, folder / f"kernel{len(list(folder.iterdir()))}.so")).encode()

    with pytest.MonkeyPatch.context() as patch:
        for name, own, found in (
            ("TARGET", "lowbit_cuda_test", handler.lb_cuda_product_host),
            ("NORMED_TARGET", "lowbit_cuda_normed_test", handler.lb_cuda_normed_product_host),
            ("ATTENTION_TARGET", "lowbit_cuda_attention_test", handler.lb_cuda_attention_host),
            ("STEP_TARGET", "lowbit_cuda_step_test", handler.lb_cuda_step_host),
        ):
            jax.ffi.register_ffi_target(own, jax.ffi.pycapsule(found), platform="cpu")
            patch.setattr(target, name, own)
        patch.setattr(target, "register", lambda: handler)
        patch.setattr(compiler, "compiled", for_a_processor)
        patch.setattr(kernels, "architecture", lambda: "processor")
        patch.setattr(cuda, "available", lambda: True)
        patch.setattr(cuda, "processors", lambda: 3)
        for module in (pallas_product, whole_step):
            patch.setattr(module, "kernel_runs_here", lambda: True)
        yield fake
