"""What a kernel loses, measured: how far the model's predictions move with this one kernel rounded."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from lowbit.evals.jax_predictor import LOGITS_AT_ONCE
from lowbit.llama import LlamaConfig
from lowbit.mixed.finished import FinishedRows, layer_by_layer
from lowbit.mixed.trial import FloatLayer, Progress, Rows, Sensitivities, Trial
from lowbit.models.blockwise import apply_block
from lowbit.models.chunks import cut
from lowbit.models.layers import RMSNorm
from lowbit.models.layerwise import LayerSource
from lowbit.ptq.calibration import Devices, embedded
from lowbit.ptq.programs import jit
from lowbit.train.quantization import EMBEDDING
from lowbit.tree import unflatten

Hidden = Float[Array, "batches b t d"]


class FloatModel(NamedTuple):
    """The float model and what it makes of the calibration tokens.

    Attributes:
      blocks: its layers, stacked.
      scale: of the last norm, f32[d].
      head: f32[d V].
      final: what its last layer gives, f32[batches b t d].
    """

    blocks: Any
    scale: Any
    head: Any
    final: Any


def divergences(
    source: LayerSource,
    trial: Trial,
    *,
    finished: FinishedRows | None = None,
    progress: Progress | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Sensitivities:
    """The mean over positions of KL(float || model with one kernel rounded), in nats/token.

    Nothing is approximated but that losses of several kernels add up. Cost: for every kernel and width a pass through
    the layers from its own to the last, and the head: with L layers about 7 L^2 / 2 times what a layer takes, a width.
    The whole model is in the memory of every device.

    Args and raises: as `lowbit.mixed.hessian.output_errors`.
    """
    trial.check(source.cfg)
    model = _float_model(source, trial, Devices.of(jax.local_devices() if devices is None else devices))
    rows_of = functools.partial(_rows, trial, model)
    return layer_by_layer("kl", source, trial, rows_of, finished, progress, devices)


def _float_model(source: LayerSource, trial: Trial, places: Devices) -> FloatModel:
    cfg = source.cfg
    blocks = jax.device_put(source.load().params["layers"], places.everywhere)
    head = source.outside(EMBEDDING).T if cfg.tie_embeddings else source.outside("lm_head/kernel")
    scale, head = jax.device_put((source.outside("norm/scale"), head), places.everywhere)
    start = embedded(source.outside(EMBEDDING), trial.calibration, places)
    return FloatModel(blocks, scale, head, run_from(cfg, blocks, jnp.int32(0), start))


def _rows(trial: Trial, model: FloatModel, layer: FloatLayer) -> Rows:
    rows: Rows = {}
    for name, path, w, known in layer.kernels(with_moments=trial.plan.method.reads_moments):
        rows[path] = []
        for w_hat in trial.roundings(name, path, w, known):
            block = jax.device_put(unflatten({**layer.flat, path: w_hat}), layer.devices.everywhere)
            found = divergence(layer.cfg, model, block, jnp.int32(layer.index), layer.hidden)
            # A mean of differences of float32 logarithms: a tiny one may come out below 0, which no divergence is.
            rows[path].append(max(0.0, float(found)))
    return rows


@functools.partial(jit, static_argnames=("cfg",))
def run_from(cfg: LlamaConfig, blocks: Any, first: Int32[Array, ""], hidden: Hidden) -> Hidden:
    """Returns what the last layer gives where `hidden` goes into layer `first`; one program serves all of them."""
    return jax.lax.map(lambda x: _through(cfg, blocks, first, x), hidden)


@functools.partial(jit, static_argnames=("cfg",))
def divergence(
    cfg: LlamaConfig, model: FloatModel, block: Any, index: Int32[Array, ""], hidden: Hidden
) -> Float[Array, ""]:
    """Returns the mean KL(float || changed) over all positions, in nats.

    Args:
      cfg: the model's sizes.
      model: the float one.
      block: layer `index`, changed.
      index: of the layer.
      hidden: its inputs.
    """

    def of_batch(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, final = pair
        changed = _through(cfg, model.blocks, index + 1, apply_block(cfg, block, x))
        chunks = _chunks(x.shape[1], x.shape[0] * x.shape[1] * cfg.vocab_size)
        per_chunk = jax.lax.map(
            lambda states: _mean_divergence(*(_log_probabilities(cfg, model, s) for s in states)),
            (cut(final, chunks), cut(changed, chunks)),
        )
        return jnp.mean(per_chunk)

    return jnp.mean(jax.lax.map(of_batch, (hidden, model.final)))


def _through(cfg: LlamaConfig, blocks: Any, first: Int32[Array, ""], x: jax.Array) -> jax.Array:
    def step(index: jax.Array, x: jax.Array) -> jax.Array:
        block = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), blocks)
        return apply_block(cfg, block, x)

    return jax.lax.fori_loop(first, jnp.int32(cfg.num_layers), step, x)


def _log_probabilities(cfg: LlamaConfig, model: FloatModel, states: jax.Array) -> jax.Array:
    normed: Any = RMSNorm(cfg.rms_norm_eps, jnp.float32).apply({"params": {"scale": model.scale}}, states)
    return jax.nn.log_softmax(jnp.matmul(normed, model.head, precision=jax.lax.Precision.HIGHEST), axis=-1)


def _mean_divergence(reference: jax.Array, changed: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(jnp.exp(reference) * (reference - changed), axis=-1))


def _chunks(length: int, logits: int) -> int:
    """The fewest pieces of equal size that sequences can be cut into so that a piece's logits fit in memory."""
    fits = (n for n in range(1, length + 1) if length % n == 0 and logits <= n * LOGITS_AT_ONCE)
    return next(fits, length)
