"""Kernels in CUDA C++ for jitted programs: products of few tokens with packed weights, and attention of one token."""

from lowbit.cuda.attention import AttentionShape, AttentionTile, attend, attention_fits, attention_tile
from lowbit.cuda.kernels import available
from lowbit.cuda.product import MOST_TOKENS, TILE, CudaTile, Shape, fewest_warps, fits, matmul, matmul_normed

__all__ = [
    "MOST_TOKENS",
    "TILE",
    "AttentionShape",
    "AttentionTile",
    "CudaTile",
    "Shape",
    "attend",
    "attention_fits",
    "attention_tile",
    "available",
    "fewest_warps",
    "fits",
    "matmul",
    "matmul_normed",
]
