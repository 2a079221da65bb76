"""Codes of several weights at once: product and residual vector quantization."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target

CODE_BITS = 8
"""Of an index: 256 centroids at most, so that the table fits a cache."""

RESIDUAL_LENGTH = 4
"""Weights a vector in residual quantization."""

ROUNDS = 12
"""Of Lloyd's algorithm."""

VECTORS_AT_ONCE = 4096
"""Whose distances to all centroids are in memory together."""


def product_round(
    path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options
) -> Rounded:
    """Product quantization: 8 / bits weights of a column share an index (arXiv 1011.1669; of layers, 1412.6115).

    One table of 256 centroids (64 at 3 bits) a matrix, in units of each column's root mean square. No data. Cost: 12
    rounds of k-means over the matrix. Bits count indices, float16 tables and float16 column scales.
    """
    del path, moments
    length = product_length(target.bits)
    return _round(w, length, (round(target.bits * length),), options.seed)


def residual_round(
    path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options
) -> Rounded:
    """Residual vector quantization: each stage codes what the stage before left over (as in AQLM's start, 2401.06118).

    Vectors of 4 weights; 2 stages up to 4 bits, each with a table of 2^(2 bits) centroids, 4 stages of 256 at 8. No
    data. Cost and bits: as `product_round`, stage by stage.
    """
    del path, moments
    total = round(target.bits * RESIDUAL_LENGTH)
    stages = max(2, math.ceil(total / CODE_BITS))
    return _round(w, RESIDUAL_LENGTH, (total // stages,) * stages, options.seed)


def product_length(bits: float) -> int:
    """How many weights share an index of at most 8 bits; a power of two."""
    return 2 ** int(math.log2(CODE_BITS / bits))


def check_product(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Raises QuantizerError where vectors do not divide the inputs of a kernel."""
    del options
    _check_length(product_length(target.bits), inputs)


def check_residual(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Raises QuantizerError where vectors do not divide the inputs of a kernel."""
    del target, options
    _check_length(RESIDUAL_LENGTH, inputs)


def _check_length(length: int, inputs: Sequence[int]) -> None:
    odd = sorted({k for k in inputs if k % length})
    if odd:
        raise QuantizerError(f"vectors of {length} weights do not divide {odd[0]} inputs", "choose another width")


def _round(w: Float[Array, "k n"], length: int, code_bits: tuple[int, ...], seed: int) -> Rounded:
    k, n = w.shape
    w_hat = vector_quantized(w, length, code_bits, jax.random.key(seed))
    indices = sum(code_bits) / length
    tables = sum(2**bits for bits in code_bits) * length * 16.0 / (k * n)
    return Rounded(w_hat, w_hat, {}, None, bits=indices + tables + 16.0 / k)


@functools.partial(jit, static_argnames=("length", "code_bits"))
def vector_quantized(
    w: Float[Array, "k n"], length: int, code_bits: tuple[int, ...], key: jax.Array
) -> Float[Array, "k n"]:
    """Returns w as sums of centroids, one a stage.

    Args:
      w: the kernel; k a multiple of `length`.
      length: weights of a column that share an index.
      code_bits: of the indices of each stage.
      key: of the first centroids.
    """
    k, n = w.shape
    scale = jnp.sqrt(jnp.mean(jnp.square(w), axis=0, keepdims=True)).astype(jnp.float16).astype(jnp.float32)
    scale = jnp.maximum(scale, jnp.float32(jnp.finfo(jnp.float16).tiny))
    vectors = (w / scale).reshape(k // length, length, n).swapaxes(1, 2).reshape(-1, length)
    left = vectors
    for stage, bits in enumerate(code_bits):
        table, indices = clustered(left, min(2**bits, len(vectors)), jax.random.fold_in(key, stage))
        left = left - table[indices]
    decoded = (vectors - left).reshape(k // length, n, length).swapaxes(1, 2).reshape(k, n)
    return decoded * scale


def clustered(
    vectors: Float[Array, "m length"], count: int, key: jax.Array
) -> tuple[Float[Array, "count length"], Array]:
    """Returns centroids, rounded to float16, and the index of the nearest for each vector (Lloyd's algorithm)."""

    def nearest(table: Float[Array, "count length"]) -> Array:
        sizes = jnp.sum(jnp.square(table), axis=1)

        def of_one(vector: Array) -> Array:
            inner = jnp.einsum("cl,l->c", table, vector, precision=jax.lax.Precision.HIGHEST)
            return jnp.argmin(sizes - 2.0 * inner)

        return jax.lax.map(of_one, vectors, batch_size=min(VECTORS_AT_ONCE, len(vectors)))

    def move(table: Float[Array, "count length"], _: None) -> tuple[Float[Array, "count length"], None]:
        indices = nearest(table)
        members = jnp.zeros((count,), jnp.float32).at[indices].add(1.0)
        sums = jnp.zeros_like(table).at[indices].add(vectors)
        return jnp.where(members[:, None] > 0, sums / jnp.maximum(members, 1.0)[:, None], table), None

    start = jax.random.choice(key, vectors, (count,), replace=False)
    table, _ = jax.lax.scan(move, start, None, length=ROUNDS)
    table = table.astype(jnp.float16).astype(jnp.float32)
    return table, nearest(table)
