"""A step of one sequence as one kernel, which starts once where kernels of single products start five times a layer.

Its blocks have the codes of the next products come while they wait for one another: memory never rests. What is
computed is the same, up to the order of float sums.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit import cuda
from lowbit.cuda import Matrices, StepShape, StepTile
from lowbit.generation.cache import KVCache
from lowbit.generation.fused_attention import filled_slots
from lowbit.generation.fused_step import takes_layers
from lowbit.generation.joined import SIBLINGS, Columns
from lowbit.generation.weights import Weights
from lowbit.llama import LAYER_PREFIX, CacheKind, LlamaConfig
from lowbit.pallas import GpuWeight, kernel_runs_here
from lowbit.pallas.tiles import cuda_shape

MOST_SLOTS = 1280
"""Of a cache: in larger ones attention takes longer here than in kernels of its own. Measured with 1,088, where it does
not, and with 4,160."""

OUT, DOWN = (f"{LAYER_PREFIX}{name}_proj" for name in ("attn/o", "mlp/down"))


class Plan(NamedTuple):
    """How a step is computed.

    Attributes:
      shape: of the model, its matrices and its cache.
      tile: how the work is cut.
      matrices: of all layers, four stacks.
    """

    shape: StepShape
    tile: StepTile
    matrices: tuple[GpuWeight, ...]


def plan(cfg: LlamaConfig, kind: CacheKind, weights: Weights, cache: KVCache) -> Plan | None:
    """Returns how one kernel computes a step here; None where it does not.

    It takes one sequence, a cache of bfloat16 numbers for up to `MOST_SLOTS` tokens, and stacks of packed matrices
    without zeros or factors of inputs, those with the same inputs joined; on a GPU that it was made for.

    Args:
      cfg: sizes and constants.
      kind: of the cache.
      weights: all of them.
      cache: its arrays.
    """
    keys = cache.keys.codes
    _, sequences, kv_heads, slots, h = keys.shape
    if not takes_layers(cfg, kind) or keys.dtype != jnp.bfloat16 or sequences != 1 or slots > MOST_SLOTS:
        return None
    matrices = _matrices(weights)
    if matrices is None or not kernel_runs_here() or not cuda.available():
        return None
    # A number that is known: what is static of a matrix is the same in all layers.
    qkv, out, up, down = (cuda_shape(w.of_layer(np.int32(0)), 1) for w in matrices)
    if qkv is None or out is None or up is None or down is None:
        return None
    attention = cuda.AttentionShape(1, kv_heads, cfg.num_heads // kv_heads, h, slots)
    shape = StepShape(cfg.num_layers, qkv, out, up, down, attention, cfg.rms_norm_eps)
    tile = cuda.step_tile(shape, cuda.processors())
    return None if tile is None else Plan(shape, tile, matrices)


def all_layers(
    plan: Plan, weights: Weights, x: jax.Array, cos: jax.Array, sin: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Returns (normed last states bf16[1 d], cache).

    Args:
      plan: of these weights and this cache.
      weights: all of them.
      x: the embedded token bf16[1 d].
      cos: f32[1 1 h/2], of the angles of its position.
      sin: likewise.
      cache: with room for a token.
    """
    params: dict[str, Any] = weights.layers["params"]
    norms = [params["layers"][name]["scale"] for name in ("attn_norm", "mlp_norm")]
    hidden, keys, values = cuda.take_step(
        *(x, cos, sin, filled_slots(cache.length, cache.start)),
        [*norms, params["norm"]["scale"]],
        [Matrices(w.scale, w.words) for w in plan.matrices],
        *(cache.keys.codes, cache.values.codes),
        plan.shape,
        plan.tile,
    )
    return hidden, cache.filled(cache.keys.with_codes(keys), cache.values.with_codes(values))


def _matrices(weights: Weights) -> tuple[GpuWeight, ...] | None:
    """The four stacks of a layer's matrices; None unless they are that."""
    stacks = weights.stacks()
    qkv, out, up, down = (stacks.get(f"{path}/kernel") for path in (SIBLINGS[0][0], OUT, SIBLINGS[1][0], DOWN))
    if not (isinstance(qkv, Columns) and isinstance(up, Columns)):
        return None
    found = qkv.whole, out, up.whole, down
    plain = all(isinstance(w, GpuWeight) and w.zero is w.in_scale is None for w in found)
    return found if plain else None  # type: ignore[return-value]
