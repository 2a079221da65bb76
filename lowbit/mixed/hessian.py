"""What a kernel loses by the error of its outputs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.mixed.finished import FinishedRows
from lowbit.mixed.trial import Progress, Rows, Sensitivities, Trial, float_layers
from lowbit.models.layerwise import LayerSource
from lowbit.ptq.moments import output_error
from lowbit.ptq.programs import jit


def output_errors(
    source: LayerSource,
    trial: Trial,
    *,
    finished: FinishedRows | None = None,
    progress: Progress | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Sensitivities:
    """The relative error of each kernel's outputs, `trace(d^T H d) / trace(w^T H w)` with `d = w_hat - w`.

    H are the second moments of its inputs in the float model, so that this is the mean square of `x d` over that of
    `x w` on the calibration tokens: what GPTQ makes small, and the cheapest of the measures, one pass over the layers
    with one of them in memory. It says what leaves a kernel, and not what the model makes of it: a matrix whose outputs
    hardly matter counts as much as one that decides the next token. The division gives matrices whose outputs have
    other units (scores, gates, the residual stream) the same; without it those of large outputs alone decide.

    Args:
      source: the float model.
      trial: method, widths and calibration.
      finished: where rows of finished layers are kept; None keeps none.
      progress: called after each layer.
      devices: over which the rows of calibration are spread; None takes all of this process.

    Raises:
      LowbitError: as `Trial.check`, before any work.
    """
    trial.check(source.cfg)
    layers: list[Rows] = []
    for layer in float_layers(source, trial.calibration, devices):
        rows = None if finished is None else finished.read(layer.index)
        if rows is None:
            rows = {}
            for name, path, w, known in layer.kernels(with_moments=True):
                assert known is not None
                rows[path] = [
                    float(relative_output_error(known.gram, w, w_hat))
                    for w_hat in trial.roundings(name, path, w, known)
                ]
            if finished is not None:
                finished.write(layer.index, rows)
        layers.append(rows)
        if progress is not None:
            progress(layer.index + 1, source.cfg.num_layers)
    return Sensitivities.of_rows("hessian", trial.widths, layers)


@jit
def relative_output_error(
    gram: Float[Array, "k k"], w: Float[Array, "k n"], w_hat: Float[Array, "k n"]
) -> Float[Array, ""]:
    """Returns `mean |x (w - w_hat)|^2 / mean |x w|^2` for inputs of second moments `gram`; 0 without any output."""
    error, output = jnp.sum(output_error(gram, w - w_hat)), jnp.sum(output_error(gram, w))
    return error / jnp.where(output > 0, output, 1.0)
