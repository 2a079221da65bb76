"""The parameters of a decoder: dense kernels, norms, the embedding table and the head.

Each layer is a small `flax.linen` module whose parameters stay float32 and are cast to `dtype` where a matmul
reads them, so that one module trains in bfloat16 on an accelerator and in float32 in tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lowbit.llama import LINEAR_NORM_EPS

DotGeneral = Callable[..., jax.Array]

PACKED = "packed"
"""Collection where a kernel may stand as something else than floats, which `dot_general` then knows how to multiply."""
STACKED = "stacked"
"""Collection of kernels of all layers in one, with `of_layer(number)`; the number of a layer is its kernel in PACKED.

A scan would copy a layer's part of an array before anything that is no fusion of XLA could read it."""

OnHeads = Callable[[jax.Array], jax.Array]
"""[b t kv_heads h] -> the same shape and dtype."""


class ActivationHooks(NamedTuple):
    """What happens to activations between the parameters; the model knows no more of it. Hashable.

    Attributes:
      around: (the `Dense` that multiplies, its `dot_general`) -> what multiplies in its place. It is called inside of
        the module, whose variables it may read: collection "grid", name "input".
      keys: on keys before their positions turn them; None leaves them.
      rotated_keys: on turned keys.
      values: on values.
    """

    around: Callable[[nn.Module, DotGeneral], DotGeneral] = lambda dense, dot_general: dot_general
    keys: OnHeads | None = None
    rotated_keys: OnHeads | None = None
    values: OnHeads | None = None


UNTOUCHED = ActivationHooks()

# As in the pretraining of the family: every matrix starts from a normal of this deviation.
INIT_STDDEV = 0.02


class Dense(nn.Module):
    """`x @ kernel (+ bias)` over the last axis: [*b k] -> [*b n].

    Attributes:
      features: n.
      dtype: dtype of the matmul and of the result.
      use_bias: whether a bias [n] is added.
      dot_general: what multiplies; with the signature of `jax.lax.dot_general`.
      hooks: `around` may put something in place of `dot_general`: an activation quantizer does.
      stddev: deviation of the kernel at init.
      norm: whether `layer_norm` follows the product (`LlamaConfig.linear_norm`).
    """

    features: int
    dtype: DTypeLike
    use_bias: bool = False
    dot_general: DotGeneral = jax.lax.dot_general
    stddev: float = INIT_STDDEV
    norm: bool = False
    hooks: ActivationHooks = UNTOUCHED

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [*b n] in `dtype`."""
        kernel: Any
        if self.has_variable(PACKED, "kernel"):
            kernel = self.get_variable(PACKED, "kernel")
            if self.has_variable(STACKED, "kernel"):
                stack: Any = self.get_variable(STACKED, "kernel")
                kernel = stack.of_layer(kernel)
        else:
            init = nn.initializers.normal(self.stddev)
            kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32).astype(self.dtype)
        # Rows are flattened first: the kernel's gradient is then a plain matrix product, which on a CPU takes half
        # the time of a contraction over two axes.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        y = self.hooks.around(self, self.dot_general)(rows, kernel, (((1,), (0,)), ((), ())))
        if self.norm:
            y = layer_norm(y)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, :]
        return y.reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis (arXiv 1910.07467), computed in float32: [*b d] -> [*b d]."""

    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [*b d] in `dtype`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * inverse * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))).astype(self.dtype)


class Embed(nn.Module):
    """The embedding table, given out whole.

    There is no lookup method: a transform that rewrites variables (fake quantization) runs once for each call of
    the module, and a tied model reads the same table at both ends.
    """

    vocab_size: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the table f32[V d]."""
        shape = (self.vocab_size, self.features)
        return self.param("embedding", nn.initializers.normal(INIT_STDDEV), shape, jnp.float32)


class Head(nn.Module):
    """The kernel of an output head that is not tied to the embedding, given out whole."""

    vocab_size: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the kernel f32[d V]."""
        shape = (self.features, self.vocab_size)
        return self.param("kernel", nn.initializers.normal(INIT_STDDEV), shape, jnp.float32)


def layer_norm(x: jax.Array) -> jax.Array:
    """LayerNorm without weights over the last axis, computed in float32: [*b n] -> [*b n]."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + LINEAR_NORM_EPS)).astype(x.dtype)


def untransformed(module_cls: Any, prefix: str) -> Any:
    """Returns the class as it is: the transform of a plain float model."""
    del prefix
    return module_cls
