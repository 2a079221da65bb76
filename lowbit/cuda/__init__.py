"""A kernel in CUDA C++ for products of few tokens with packed weights, called from jitted programs."""

from lowbit.cuda.product import MOST_TOKENS, TILE, CudaTile, Shape, available, fewest_warps, fits, matmul, matmul_normed

__all__ = ["MOST_TOKENS", "TILE", "CudaTile", "Shape", "available", "fewest_warps", "fits", "matmul", "matmul_normed"]
