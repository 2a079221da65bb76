"""Kernels in CUDA C++ for jitted programs: products of few tokens with packed weights, attention, all of a step."""

from lowbit.cuda.attention import AttentionShape, AttentionTile, attend, attention_fits, attention_tile
from lowbit.cuda.kernels import available, processors
from lowbit.cuda.product import matmul, matmul_normed
from lowbit.cuda.product_shapes import MOST_TOKENS, TILE, CudaTile, Shape, fewest_warps, fits, most_chunks
from lowbit.cuda.step import Matrices, take_step
from lowbit.cuda.step_shapes import StepShape, StepTile, step_tile

__all__ = [
    "MOST_TOKENS",
    "TILE",
    "AttentionShape",
    "AttentionTile",
    "CudaTile",
    "Matrices",
    "Shape",
    "StepShape",
    "StepTile",
    "attend",
    "attention_fits",
    "attention_tile",
    "available",
    "fewest_warps",
    "fits",
    "matmul",
    "matmul_normed",
    "most_chunks",
    "processors",
    "step_tile",
    "take_step",
]
