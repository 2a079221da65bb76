"""Packed weights times bfloat16 or 8-bit activations on a GPU, in Pallas, and the same in plain XLA for all else."""

from lowbit.cuda import CudaTile
from lowbit.pallas.product import (
    Implementation,
    kernel_runs_here,
    matmul,
    matmul_gated,
    matmul_int8,
    matmul_normed,
    norm_tile,
)
from lowbit.pallas.tiles import MAX_TOKENS, AnyTile, GemvTile, Tile
from lowbit.pallas.weight import GpuWeight, from_tensor, prepack

__all__ = [
    "MAX_TOKENS",
    "AnyTile",
    "CudaTile",
    "GemvTile",
    "GpuWeight",
    "Implementation",
    "Tile",
    "from_tensor",
    "kernel_runs_here",
    "matmul",
    "matmul_gated",
    "matmul_int8",
    "matmul_normed",
    "norm_tile",
    "prepack",
]
