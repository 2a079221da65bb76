"""A kernel in CUDA C++ for products of few tokens with packed weights, called from jitted programs."""

from lowbit.cuda.product import MOST_TOKENS, TILE, CudaTile, Shape, available, fits, matmul

__all__ = ["MOST_TOKENS", "TILE", "CudaTile", "Shape", "available", "fits", "matmul"]
