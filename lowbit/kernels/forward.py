"""A forward pass in numpy: what the compiled one is compared with, operation by operation."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lowbit.kernels.cache import KVCache
from lowbit.kernels.decoder import attention, layer_norm, rms_norm, rotate, silu
from lowbit.llama import LlamaConfig

Array = NDArray[np.float32]


@runtime_checkable
class Products(Protocol):
    """What a forward pass asks of weights: `Weights` or `CompiledWeights`."""

    def vector(self, name: str) -> Array:
        """Returns a norm's scale or a bias."""

    def matmul(self, x: Array, name: str, *, transposed: bool = False) -> Array:
        """Returns x[... k] @ parameter[k n]."""


def forward(weights: Products, config: LlamaConfig, x: Array, angles: tuple[Array, Array], cache: KVCache) -> Array:
    """Returns the normalised last hidden states f32[b t d] of embeddings x, and stores keys and values.

    Args:
      weights: of the model.
      config: of the model.
      x: f32[b t d].
      angles: cos and sin of the positions, each [t head_dim/2].
      cache: with room for t more tokens; its length does not change here.

    Raises:
      DataError: 8-bit activations that are not finite.
    """
    layers = _Layers(weights, config)
    for number in range(config.num_layers):
        x = x + layers.attend(x, number, angles, cache)
        x = x + layers.mlp(x, number)
    return layers.norm(x, "norm.scale")


class _Layers(NamedTuple):
    weights: Products
    config: LlamaConfig

    def attend(self, x: Array, layer: int, angles: tuple[Array, Array], cache: KVCache) -> Array:
        prefix = f"layers.{layer}.attn"
        normed = self.norm(x, f"{prefix}_norm.scale")
        queries = rotate(self.heads(normed, f"{prefix}.q_proj", self.config.num_heads), *angles)
        keys = rotate(self.heads(normed, f"{prefix}.k_proj", self.config.num_kv_heads), *angles)
        values = self.heads(normed, f"{prefix}.v_proj", self.config.num_kv_heads)
        mixed = attention(queries, *cache.store(layer, keys, values))
        return self.linear(mixed.reshape(*x.shape[:2], -1), f"{prefix}.o_proj.kernel")

    def heads(self, x: Array, name: str, heads: int) -> Array:
        """Projects x [b t d] to [b t heads head_dim]."""
        projected = self.linear(x, f"{name}.kernel")
        if self.config.qkv_bias:
            projected = projected + self.weights.vector(f"{name}.bias")
        return projected.reshape(*x.shape[:2], heads, self.config.head_dim)

    def mlp(self, x: Array, layer: int) -> Array:
        prefix = f"layers.{layer}.mlp"
        normed = self.norm(x, f"{prefix}_norm.scale")
        gate = silu(self.linear(normed, f"{prefix}.gate_proj.kernel"))
        up = self.linear(normed, f"{prefix}.up_proj.kernel")
        return self.linear(gate * up, f"{prefix}.down_proj.kernel")

    def linear(self, x: Array, name: str) -> Array:
        """The product with a kernel, and the norm that follows where the config has one."""
        product = self.weights.matmul(x, name)
        return layer_norm(product) if self.config.linear_norm else product

    def norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.weights.vector(name), self.config.rms_norm_eps)
