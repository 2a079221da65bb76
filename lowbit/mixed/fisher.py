"""What a kernel loses by gradients: the second-order change of the model's predictions, from one backward pass."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from lowbit.llama import LAYER_PREFIX, LlamaConfig
from lowbit.mixed.trial import Progress, Rows, Sensitivities, Trial, float_layers
from lowbit.models import Transformer
from lowbit.models.layerwise import LayerSource
from lowbit.ptq.programs import jit
from lowbit.tree import flatten, unflatten
from lowbit.tree.paths import Tree

Differences = dict[str, Float[Array, "widths layers k n"]]


def fisher_losses(
    source: LayerSource,
    trial: Trial,
    *,
    progress: Progress | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Sensitivities:
    """The Fisher information's estimate of KL(float || model with one kernel rounded), in nats/token.

    At the float weights a divergence and its gradient are zero: the first term of its series in the change d of a
    kernel is the second-order one,

      KL ~ 1/2 d^T F d,    F = mean over positions of E[g g^T],  g = grad log p(y | context), y drawn from the model

    Take for each calibration sequence s of T tokens one token drawn from the model's prediction at each position, and
    G_s, the gradient of the sum of their log likelihoods. Drawn independently given the text, scores of different
    positions have mean zero and do not correlate, so that E[<G_s, d>^2] = T d^T F d: one backward pass a sequence
    serves all kernels and widths, each by one inner product,

      loss = 1/(2 T) mean over s of <G_s, d>^2

    without bias; with all products of weights within a kernel, which the usual sum of g^2 d^2 leaves out, and which
    decide where a method rounds errors against each other. (The labels of the text would do for neither: their scores
    have a mean, and correlate.) Of N sequences the relative standard deviation is about sqrt(2/N): 18 % at 64. KL is
    also what the loss on the model's own text rises by.

    Memory: the model, its gradient, and its kernels once a width, in float32 on the first device. Source of the form:
    the quadratic approximation of OBD/OBS with the Fisher matrix as the Hessian (arXiv 2004.14340, section 3; HAWQ-V2,
    arXiv 1911.03852, has the trace in its place).

    Args and raises: as `lowbit.mixed.hessian.output_errors`; nothing is kept, as it takes no longer than the layers.
    """
    cfg = source.cfg
    trial.check(cfg)
    first = (jax.local_devices() if devices is None else devices)[0]
    params = jax.device_put(source.load().params, first)
    differences = _differences(source, trial, params, devices)
    tokens, key = trial.calibration.tokens, jax.random.key(trial.calibration.seed)
    sums = {path: np.zeros(d.shape[:2]) for path, d in differences.items()}
    for index, row in enumerate(tokens):
        drawn = jax.random.fold_in(key, index)
        products = projections(cfg, params, differences, jnp.asarray(row)[None], drawn)
        for path, product in products.items():
            sums[path] += np.square(np.asarray(product, np.float64))
        if progress is not None:
            progress(index + 1, len(tokens))
    sequences, length = tokens.shape
    losses = {path: (total / (2 * length * sequences)).T for path, total in sums.items()}
    layers: list[Rows] = [
        {path: [float(x) for x in found[index]] for path, found in losses.items()} for index in range(cfg.num_layers)
    ]
    return Sensitivities.of_rows("gradient", trial.widths, layers)


def _differences(
    source: LayerSource, trial: Trial, params: Tree, devices: Sequence[jax.Device] | None
) -> dict[str, jax.Array]:
    """What rounding adds to each kernel, by its path in a layer."""
    found: dict[str, list[list[jax.Array]]] = {}
    for layer in float_layers(source, trial.calibration, devices):
        for name, path, w, known in layer.kernels(with_moments=trial.plan.method.reads_moments):
            found.setdefault(path, []).append([w_hat - w for w_hat in trial.roundings(name, path, w, known)])
    return {path: jnp.stack([jnp.stack(of_width) for of_width in zip(*d, strict=True)]) for path, d in found.items()}


@functools.partial(jit, static_argnames=("cfg",))
def projections(
    cfg: LlamaConfig, params: Tree, differences: Differences, tokens: Int32[Array, "b t"], key: jax.Array
) -> dict[str, Float[Array, "widths layers"]]:
    """Returns <G, d> for each kernel, layer and width; G is the gradient of the log likelihood of drawn tokens.

    Args:
      cfg: the model's sizes.
      params: of the float model.
      differences: d, by the path of the kernel in a layer.
      tokens: the text.
      key: for the tokens drawn, one at each position.
    """
    flat = flatten(params)
    kernels = {path: flat[LAYER_PREFIX + path] for path in differences}
    model = Transformer(cfg, jnp.float32, remat="full", attention="xla")

    def log_likelihood(kernels: dict[str, jax.Array]) -> jax.Array:
        changed = flat | {LAYER_PREFIX + path: kernel for path, kernel in kernels.items()}
        logits: Any = model.apply({"params": unflatten(changed)}, tokens)
        labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[..., None], axis=-1)
        return jnp.sum(chosen)

    gradients = jax.grad(log_likelihood)(kernels)
    return {path: jnp.sum(gradients[path][None] * d, axis=(-2, -1)) for path, d in differences.items()}
