"""One pass of the decoder over new tokens and a cache, and what multiplies in it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from lowbit.errors import ConfigError, nearest
from lowbit.generation import fused_step, whole_step
from lowbit.generation.cache import KVCache
from lowbit.generation.floats import FloatMatrix, float_matmul
from lowbit.generation.fused_norm import added_and_normed
from lowbit.generation.fused_step import Products
from lowbit.generation.joined import Columns
from lowbit.generation.packed import PackedWeight, decode, even_levels, packed_matmul, packed_matmul_int8
from lowbit.generation.weights import Weights
from lowbit.kernels.weights import Activations
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, CacheKind, LlamaConfig
from lowbit.models.activations import rounding_hooks
from lowbit.models.attention import rotary_at
from lowbit.models.decoding import CachedBlock, CachedLayers, one_after_another
from lowbit.models.layers import RMSNorm
from lowbit.pallas import GpuWeight, matmul_gated, matmul_normed, norm_tile


class Decoder(NamedTuple):
    """What a compiled program depends on beside shapes: hashable, a static argument.

    Attributes:
      cfg: sizes and constants.
      dtype: name of the dtype of activations and matmuls.
      cache: how keys and values are held.
      activations: what packed matrices are multiplied with: "int8", rounded to 8 bits a token with integer sums, or
        "float32", as they are. Float matrices, and packed ones without `even_levels`, meet them as they are either way.
      rounding: how the model rounds the inputs of its linear layers, in front of whatever multiplies; of keys and
        values `cache` decides.
      attention: how a single token attends: a name of `step_attention.METHODS`.
      unrolled: whether the layers of a single token are written out one after another, which a GPU computes faster,
        and which takes about three times as long to compile; those of a prompt are a loop where `Weights.loops`.
      whole: whether a step of one sequence is one kernel where that can be (`whole_step`).
    """

    cfg: LlamaConfig
    dtype: str
    cache: CacheKind
    activations: str
    rounding: ActivationRounding = FLOAT_ACTIVATIONS
    attention: str = "products"
    unrolled: bool = False
    whole: bool = True

    def forward(self, weights: Weights, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Returns (normed last states [b t d], cache) of tokens i32[b t] that follow those in the cache."""
        x = self._embed(weights, tokens)
        cos, sin = rotary_at(self.cfg, cache.positions(tokens.shape[1]))
        hooks = rounding_hooks(self.rounding, cached=True)
        parts = self.cfg, jnp.dtype(self.dtype), _DOT_GENERALS[self.activations], hooks
        result: Any
        if (plan := self._plan(weights, tokens, cache)) is not None:
            last, after = whole_step.all_layers(plan, weights, x[:, 0], cos, sin, cache)
            return last[:, None], after.advance(1)
        if weights.loops and not (self.unrolled and tokens.shape[1] == 1):
            result = CachedLayers(*parts).apply(weights.variables(), x, cos, sin, cache)
            hidden, filled = result
        else:
            layers = weights.by_layer(self.cfg.num_layers)
            if tokens.shape[1] == 1 and self._fuses(layers):
                scale = weights.layers["params"]["norm"]["scale"]
                step = self.cfg, layers, scale, x[:, 0], cos, sin, cache
                products = Products(self._multiply, self._multiply_gated, self._multiply_normed)
                hidden, filled = fused_step.all_layers(*step, products)
                return hidden[:, None], filled.advance(1)
            result = one_after_another(CachedBlock(*parts), layers, x, cos, sin, cache)
            last, filled = result
            norm = RMSNorm(self.cfg.rms_norm_eps, jnp.dtype(self.dtype))
            hidden = norm.apply({"params": weights.layers["params"]["norm"]}, last)
        return hidden, filled.advance(tokens.shape[1])

    def _plan(self, weights: Weights, tokens: jax.Array, cache: KVCache) -> whole_step.Plan | None:
        """How one kernel computes a step of one token; None where it does not."""
        if not (self.whole and self._by_kernels() and self._in_bfloat16() and tokens.shape == (1, 1)):
            return None
        return whole_step.plan(self.cfg, self.cache, weights, cache)

    def _fuses(self, layers: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a step of one token takes kernels of its own."""
        return self._by_kernels() and fused_step.fits(self.cfg, self.cache, layers)

    def _by_kernels(self) -> bool:
        """Whether attention is a kernel, and nothing is rounded in front of products."""
        return self.attention == "kernel" and not self.rounding.inputs

    def _in_bfloat16(self) -> bool:
        """Whether activations are bfloat16, and meet matrices as they are."""
        return self.activations == "float32" and self.dtype == "bfloat16"

    def _multiply(self, x: jax.Array, kernel: Any) -> jax.Array:
        """x [b k] times a matrix of any form, f32[b n]."""
        numbers = (((1,), (0,)), ((), ()))
        return _DOT_GENERALS[self.activations](x, kernel, numbers, preferred_element_type=jnp.float32)

    def _multiply_gated(self, both: jax.Array, kernel: Any) -> jax.Array:
        """silu(gate) * other of both f32[b 2k], in the dtype of activations, times a matrix, f32[b n]."""
        if self._as_bfloat16(kernel):
            return matmul_gated(both, kernel)
        gate, other = jnp.split(both.astype(self.dtype), 2, axis=-1)
        return self._multiply(jax.nn.silu(gate) * other, kernel)

    def _multiply_normed(
        self, x: jax.Array, added: jax.Array | None, scale: jax.Array, kernel: Any
    ) -> tuple[jax.Array, jax.Array]:
        """(x + added, its norm times a matrix, f32[b n])."""
        eps = self.cfg.rms_norm_eps
        if added is not None and self._as_bfloat16(kernel) and (tile := norm_tile(kernel, len(x), eps)) is not None:
            return matmul_normed(x, added, scale, eps, kernel, tile)
        x, inputs = added_and_normed(x, added, scale, eps, interpret=jax.default_backend() == "cpu")
        return x, self._multiply(inputs, kernel)

    def _as_bfloat16(self, kernel: Any) -> bool:
        """Whether a matrix is laid out for kernels that take bfloat16, and meets such activations."""
        return isinstance(kernel, GpuWeight) and self._in_bfloat16()

    def logits(self, weights: Weights, hidden: jax.Array) -> jax.Array:
        """Returns f32[b V] of states [b d]."""
        head, inputs = (weights.embedding, 1) if weights.head is None else (weights.head, 0)
        multiply = _DOT_GENERALS[self.activations]
        return multiply(hidden, head, (((1,), (inputs,)), ((), ())), preferred_element_type=jnp.float32)

    def _embed(self, weights: Weights, tokens: jax.Array) -> jax.Array:
        table = weights.embedding
        index = tokens.reshape(-1)
        if isinstance(table, PackedWeight):
            rows = decode(table.rows(index))
        else:
            rows = table.rows(index) if isinstance(table, GpuWeight) else table[index]
        return rows.reshape(*tokens.shape, -1).astype(self.dtype)


def check_activations(name: str) -> None:
    """Refuses what is no way to multiply.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in get_args(Activations):
        raise ConfigError(f"unknown activations {name!r}", nearest(name, get_args(Activations)))


def _float_dot_general(
    x: jax.Array, kernel: Any, dimension_numbers: Any, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """`jax.lax.dot_general`, with kernels that may be packed, laid out, and joined."""
    if isinstance(kernel, Columns):
        return kernel.of(_float_dot_general(x, kernel.whole, dimension_numbers, precision, preferred_element_type))
    if isinstance(kernel, FloatMatrix):
        return float_matmul(x, kernel, precision, preferred_element_type)
    if isinstance(kernel, PackedWeight | GpuWeight):
        return packed_matmul(x, kernel).astype(preferred_element_type or x.dtype)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


def _int8_dot_general(
    x: jax.Array, kernel: Any, dimension_numbers: Any, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """The same, with 8-bit activations wherever codes can meet them."""
    if isinstance(kernel, Columns):
        return kernel.of(_int8_dot_general(x, kernel.whole, dimension_numbers, precision, preferred_element_type))
    if isinstance(kernel, GpuWeight) or (isinstance(kernel, PackedWeight) and even_levels(kernel.levels) is not None):
        return packed_matmul_int8(x, kernel).astype(preferred_element_type or x.dtype)
    return _float_dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


_DOT_GENERALS = {"float32": _float_dot_general, "int8": _int8_dot_general}
