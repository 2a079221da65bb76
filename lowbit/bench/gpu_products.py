"""Times of single products on a GPU, inside one program, with weights from memory: more copies than its caches hold."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.bench.random_model import LEVELS
from lowbit.errors import ConfigError
from lowbit.generation.packed import quantize_activations
from lowbit.pallas import AnyTile, GpuWeight, Tile, matmul, matmul_int8
from lowbit.pallas.fields import HALFWORD
from lowbit.pallas.weight import affine, bits_of, block, parts, span_for

TOTAL_BYTES = 2 << 30
"""Of all copies: more than caches hold, and so many that a pass takes long. Between two passes an H100 rests for 5 to 8
microseconds, which is 1 % of 64 products of 16 MB, as of 16 of 134 MB."""
COPIED_BYTES = 1 << 29
"""Of the array that is copied: ten times the second-level cache of an H100."""
MOST_COPIES = 64
TURNS = 128
"""Passes over all copies in one program: starting one takes 0.8 ms, as long as 100 of 8,000 products."""
BFLOAT16_BITS = 16

Multiply = Callable[[jax.Array, Any], jax.Array]


class GpuProduct(NamedTuple):
    """Products x[batch k] @ w[k n] to be timed, of any batch.

    Attributes:
      k: inputs.
      n: outputs.
      bits: of the codes; 16 is bfloat16, through XLA.
      group: inputs that share a scale; None is one scale an output.
      activations: "bfloat16", or "int8": rounded to 8 bits a token in front.
    """

    k: int
    n: int
    bits: float
    group: int | None = None
    activations: str = "bfloat16"


class Matrices:
    """Copies of one matrix on the device.

    Attributes:
      nbytes: of one: what a product has to read.
      weights: all of them.
    """

    def __init__(self, case: GpuProduct):
        self.case = case
        self.nbytes = _nbytes(case)
        copies = min(MOST_COPIES, max(2, math.ceil(TOTAL_BYTES / self.nbytes)))
        make = jax.jit(lambda key: _random_weight(case, key))
        self.weights = [make(key) for key in jax.random.split(jax.random.key(0), copies)]

    def program(self, batch: int, tile: AnyTile | None = None) -> "Program":
        """Returns the products of all copies with so many tokens, many times over."""
        return Program(self, batch, tile)


class Program:
    """A compiled loop over copies, whose activations change from pass to pass so that none can be left out."""

    def __init__(self, matrices: Matrices, batch: int, tile: AnyTile | None):
        multiply = _multiply(matrices.case, tile)
        x = np.random.default_rng(0).normal(size=(batch, matrices.case.k))
        self._arguments = jnp.asarray(x, jnp.bfloat16), matrices.weights
        self._products = TURNS * len(matrices.weights)

        def one_pass(number: jax.Array, weights: list[Any], x: jax.Array) -> tuple[jax.Array, ...]:
            moved = x + number.astype(x.dtype)
            return tuple(multiply(moved, w) for w in weights)

        def run(x: jax.Array, weights: list[Any]) -> tuple[jax.Array, ...]:
            start = tuple(jnp.zeros((batch, matrices.case.n), jnp.float32) for _ in weights)
            return jax.lax.fori_loop(0, TURNS, lambda number, _: one_pass(number, weights, x), start)

        self._run = jax.jit(run)

    def seconds(self) -> float:
        """Returns the time of one product; the first call compiles."""
        began = time.perf_counter()
        jax.block_until_ready(self._run(*self._arguments))
        return (time.perf_counter() - began) / self._products


class Copy:
    """Adds one to every number of an array larger than any cache: what memory gives, read and written."""

    def __init__(self) -> None:
        self._x = jnp.zeros(COPIED_BYTES // 4, jnp.float32)
        self.nbytes = 2 * self._x.nbytes
        self._turns = max(1, TURNS // 4)
        self._run = jax.jit(lambda x: jax.lax.fori_loop(0, self._turns, self._turn, x), donate_argnums=0)

    @staticmethod
    def _turn(number: jax.Array, x: jax.Array) -> jax.Array:
        """Four passes, which may not become one."""
        del number
        for _ in range(4):
            x = jax.lax.optimization_barrier(x + 1)
        return x

    def seconds(self) -> float:
        """Returns the time of one pass."""
        began = time.perf_counter()
        self._x = jax.block_until_ready(self._run(self._x))
        return (time.perf_counter() - began) / (4 * self._turns)


def _nbytes(case: GpuProduct) -> int:
    shapes = jax.eval_shape(lambda: _random_weight(case, jax.random.key(0)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _random_weight(case: GpuProduct, key: jax.Array) -> Any:
    """Codes of any bits in the kernel's layout: speed does not depend on what they say."""
    if case.bits == BFLOAT16_BITS:
        return jax.random.normal(key, (case.n, case.k), jnp.bfloat16)
    levels, unit = affine(LEVELS[case.bits])
    bits = bits_of(len(LEVELS[case.bits]))
    group = case.group or case.k
    span = span_for(bits, case.k, group)
    size = block(bits, span)
    inputs = math.ceil(case.k / size) * size
    words = []
    for part in parts(bits):
        drawn = jax.random.bits(key, (case.n, inputs * part.bits // HALFWORD), jnp.uint16)
        words.append(jax.lax.bitcast_convert_type(drawn, jnp.int16))
    scale = jnp.full((case.n, case.k // group), case.k**-0.5, jnp.float32)
    return GpuWeight(tuple(words), scale, None, None, None, levels, unit, bits, span, case.k)


def _multiply(case: GpuProduct, tile: AnyTile | None) -> Multiply:
    if case.bits == BFLOAT16_BITS:
        numbers = (((1,), (1,)), ((), ()))
        return lambda x, w: jax.lax.dot_general(x, w, numbers, preferred_element_type=jnp.float32)
    if case.activations == "int8":
        # Jitted once for all copies: each call would be compiled on its own.
        if not isinstance(tile, Tile | None):
            raise ConfigError(f"8-bit activations cannot take {tile}", "take a tile of the kernel with tensor cores")
        return jax.jit(lambda x, w: matmul_int8(*quantize_activations(x), w, tile=tile))
    return jax.jit(lambda x, w: matmul(x, w, tile=tile))
