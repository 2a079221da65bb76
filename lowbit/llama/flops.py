"""How much arithmetic the decoder asks for, counted from its sizes alone.

A multiply-add is 2 FLOPs. Counted is what the model's definition multiplies: kernels of the blocks, causal attention
and the head. Not counted are elementwise work, the embedding's lookup, and whatever an implementation does besides:
quantizers, recomputation in the backward pass, the masked half of attention scores.
"""

import math

from lowbit.llama.config import LlamaConfig
from lowbit.llama.shapes import LAYER_PREFIX, param_shapes

BACKWARD = 2
"""The backward pass has two products for each one of the forward pass: by the weights, and by the activations."""


def kernel_weights(cfg: LlamaConfig) -> int:
    """Returns N, the weights of all kernels in the blocks: those that each token is multiplied with."""
    shapes = param_shapes(cfg)
    return sum(
        math.prod(shape) for path, shape in shapes.items() if path.startswith(LAYER_PREFIX) and path.endswith("kernel")
    )


def forward_flops(cfg: LlamaConfig, length: int) -> float:
    """Returns FLOPs a token of the forward pass over sequences of `length` tokens.

        2 N  +  2 L q (length + 1)  +  2 d V

    with q = num_heads * head_dim: scores and mixing take 2 q FLOPs each for every key that a query sees, which are
    (length + 1) / 2 on average under the causal mask.
    """
    q = cfg.num_heads * cfg.head_dim
    attention = 2 * cfg.num_layers * q * (length + 1)
    return 2 * kernel_weights(cfg) + attention + 2 * cfg.hidden_size * cfg.vocab_size


def train_flops(cfg: LlamaConfig, length: int, teacher: LlamaConfig | None = None) -> float:
    """Returns model FLOPs a token of training: forward and backward pass, and a teacher's forward pass."""
    taught = 0.0 if teacher is None else forward_flops(teacher, length)
    return (1 + BACKWARD) * forward_flops(cfg, length) + taught
