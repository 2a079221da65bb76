"""Products of the compiled CPU kernels inside jitted jax programs."""

from lowbit.ffi.matmul import KernelMatrix, kernel_matrix, matmul

__all__ = ["KernelMatrix", "kernel_matrix", "matmul"]
