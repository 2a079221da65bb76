"""GGUF files (llama.cpp) in numpy: the container, and blocks whose integers are written and read without loss."""

from lowbit.gguf.blocks import CODERS, Coder, coder_for
from lowbit.gguf.reader import GgufFile, GgufTensor, read
from lowbit.gguf.types import BF16, F16, F32, TYPES, TensorType, named_type
from lowbit.gguf.writer import write

__all__ = [
    "BF16",
    "CODERS",
    "F16",
    "F32",
    "TYPES",
    "Coder",
    "GgufFile",
    "GgufTensor",
    "TensorType",
    "coder_for",
    "named_type",
    "read",
    "write",
]
