"""What the Llama family is, without any framework: sizes, rotary frequencies, parameter names and shapes.

The Flax model, the loaders and the numpy runtime all read this one description. Covered: Llama 1 to 3,
TinyLlama, SmolLM and SmolLM2, MobileLLM, Qwen2 (a bias on q, k, v), and Mistral without a sliding window.
"""

from lowbit.llama.activations import FLOAT_ACTIVATIONS, LINEARS, ActivationRounding, CacheKind, InputRounding
from lowbit.llama.config import LINEAR_NORM_EPS, SUPPORTED_FAMILIES, LlamaConfig
from lowbit.llama.frequencies import rope_frequencies
from lowbit.llama.scaling import ROPE_KINDS, RopeScaling
from lowbit.llama.shapes import LAYER_PREFIX, param_shapes

__all__ = [
    "FLOAT_ACTIVATIONS",
    "LAYER_PREFIX",
    "LINEARS",
    "LINEAR_NORM_EPS",
    "ROPE_KINDS",
    "SUPPORTED_FAMILIES",
    "ActivationRounding",
    "CacheKind",
    "InputRounding",
    "LlamaConfig",
    "RopeScaling",
    "param_shapes",
    "rope_frequencies",
]
