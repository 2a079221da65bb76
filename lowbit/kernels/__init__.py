"""Running a packed model without jax: plain semantics of the products, and a whole decoder in numpy."""

from lowbit.kernels.cache import KVCache
from lowbit.kernels.reference import matmul, matmul_int8, matmul_levels
from lowbit.kernels.runtime import Runtime
from lowbit.kernels.sampling import Sampling
from lowbit.kernels.text import Tokenizer, generate_text, prompt_tokens
from lowbit.kernels.weights import Weights, unstacked_shapes

__all__ = [
    "KVCache",
    "Runtime",
    "Sampling",
    "Tokenizer",
    "Weights",
    "generate_text",
    "matmul",
    "matmul_int8",
    "matmul_levels",
    "prompt_tokens",
    "unstacked_shapes",
]
