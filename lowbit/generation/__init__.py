"""Text from a model in jax: a key-value cache of 32 to 4 bits a number, packed weights, sampling, all under jit."""

from lowbit.generation.cache import KVCache, bytes_per_token
from lowbit.generation.decoder import Decoder
from lowbit.generation.generator import Generated, Generator
from lowbit.generation.packed import PackedWeight, packed_matmul, packed_matmul_int8
from lowbit.generation.stored import CACHE_KINDS, cache_kind
from lowbit.generation.weights import Weights, from_packed, from_params
from lowbit.kernels.sampling import Sampling

__all__ = [
    "CACHE_KINDS",
    "Decoder",
    "Generated",
    "Generator",
    "KVCache",
    "PackedWeight",
    "Sampling",
    "Weights",
    "bytes_per_token",
    "cache_kind",
    "from_packed",
    "from_params",
    "packed_matmul",
    "packed_matmul_int8",
]
