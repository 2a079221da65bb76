"""What a kernel loses by the error of its outputs."""

from collections.abc import Sequence

import jax

from lowbit.mixed.finished import FinishedRows, layer_by_layer
from lowbit.mixed.trial import FloatLayer, Progress, Rows, Sensitivities, Trial, kernel_weights
from lowbit.models.layerwise import LayerSource
from lowbit.ptq.model import relative_error


def output_errors(
    source: LayerSource,
    trial: Trial,
    *,
    finished: FinishedRows | None = None,
    progress: Progress | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Sensitivities:
    """The relative error of each kernel's outputs, times the kernel's share of all weights; with `d = w_hat - w`,

      loss = trace(d^T H d) / trace(w^T H w) * k n / (weights of the kernels of all layers)

    H are the second moments of its inputs in the float model, so that the first fraction is the mean square of `x d`
    over that of `x w` on the calibration tokens: what GPTQ makes small. It is the cheapest of the measures, one pass
    over the layers with one of them in memory. It says what leaves a kernel, and not what the model makes of it: of
    matrices of one size, one that hardly matters counts as much as one that decides the next token. The division gives
    outputs of other units (scores, gates, the residual stream) the same; without it the largest outputs alone decide.
    The share makes the sum an average over weights, as if each carried as much of the model as any other; without it
    small matrices take the bits of large ones.

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
    everything = kernel_weights(source.cfg)

    def rows_of(layer: FloatLayer) -> Rows:
        rows: Rows = {}
        for name, path, w, known in layer.kernels(with_moments=True):
            assert known is not None
            errors = [relative_error(w, w_hat, known.gram) for w_hat in trial.roundings(name, path, w, known)]
            rows[path] = [float(error) * w.size / everything for error in errors]
        return rows

    return layer_by_layer("hessian", source, trial, rows_of, finished, progress, devices)
