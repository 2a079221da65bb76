"""ParetoQ: a grid fitted to each width, and a learned scale (arXiv 2502.02631)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics import groups, scales, ste
from lowbit.numerics.grids import AffineGrid, Grid, paretoq_grid, per_group, stack
from lowbit.numerics.groups import Granularity
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.standing import Standing, affine_standing


def paretoq(
    bits: float | np.integer | np.floating | Sequence[float | np.integer | np.floating],
    granularity: Granularity = "channel",
    scale_init: str | scales.ScaleInit = "mse",
    scale_dtype: DTypeLike = jnp.float16,
    estimator: str = "clipped",
) -> Quantizer:
    """Elastic binary (1), stretched elastic quant (1.58, 2) and LSQ (3, 4) with a scale that learns.

    Example:
      >>> quantizer = paretoq(2)
      >>> state = quantizer.init(w)                 # {"scale": f32[*s 1 n]}
      >>> w_hat = quantizer.fake(w, state)          # what the forward pass multiplies with
      >>> packed = quantizer.encode(w, state)       # the same numbers as codes and fp16 scales

    Args:
      bits: 1, 1.58, 2, 3 or 4; or a sequence of them, one a stacked layer of `w [L k n]`. The sequence makes the grid
        part of the state (key "grid", arrays `[L 1 1]`), so that the step compiled for one choice serves all others.
      granularity: the paper has one scale an output channel.
      scale_init: "mse" (mean-square-optimal, the best start measured), "max", "mean", "reference" (the paper's code),
        or a function.
      scale_dtype: what the file stores; the scale is rounded to it in the forward pass. float32 rounds nothing.
      estimator: of the gradient to the weights: "clipped" (the paper's), "identity" or "dsq" (`ste.ESTIMATORS`).

    Returns:
      A quantizer. Gradients: `ste.learned_scale`. Differences from the reference code: a weight of exactly 0 at 1 bit
      becomes +scale (there 0, which one bit cannot hold).

    Raises:
      QuantizerError: another width or none, an unknown estimator, or a scale dtype that no file holds; from init, a
        group that does not divide k, or layers that do not match.
    """
    groups.check_granularity(granularity)
    scales.check_dtype(scale_dtype, "a scale")
    start = scales.by_name(scale_init)
    to_weights = ste.estimator_by_name(estimator)
    if not isinstance(bits, Sequence):
        width = _python_number(bits)
        grid, affine = paretoq_grid(width)
        return _learned(f"paretoq{width:g}", grid, affine, granularity, start, scale_dtype, to_weights)
    widths = tuple(_python_number(width) for width in bits)
    if not widths:
        raise QuantizerError("no width was given", "give one width, or one for each layer of the stacked parameter")
    grids = [paretoq_grid(b)[1] for b in widths]
    mixed = _traced("paretoq_mixed", widths, stack(grids), granularity, start, scale_dtype, to_weights)
    return mixed._replace(at_layer=lambda index: paretoq(widths[index], granularity, start, scale_dtype))


def _python_number(bits: float | np.integer | np.floating) -> float:
    """Widths out of a numpy array as plain numbers, so that names and messages read the same."""
    if isinstance(bits, np.integer):
        return int(bits)
    return float(bits) if isinstance(bits, np.floating) else bits


def _learned(
    name: str,
    grid: Grid,
    affine: AffineGrid,
    granularity: Granularity,
    scale_init: scales.ScaleInit,
    scale_dtype: DTypeLike,
    estimator: ste.Estimator,
) -> Quantizer:
    """One static grid for all of the parameter."""

    def init(w: Float[Array, "..."]) -> State:
        return {"scale": scales.start(w, granularity, scale_init, affine)}

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return ste.learned_scale(w, ste.stored_scale(state["scale"], scale_dtype), affine, estimator)

    def encode(w: Float[Array, "*s k n"], state: State) -> QTensor:
        return encode_affine(w, state["scale"], affine, grid, scale_dtype)

    def standing(w: Float[Array, "*s k n"], state: State) -> Standing:
        return affine_standing(w, state["scale"], affine, granularity, scale_dtype)

    def levels(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return affine_levels(w, state["scale"], affine, scale_dtype)

    return Quantizer(
        name, grid, init, encode, fake, granularity, standing=standing, levels=levels, scale_dtype=scale_dtype
    )


def _traced(
    name: str,
    widths: tuple[float, ...],
    affine: AffineGrid,
    granularity: Granularity,
    scale_init: scales.ScaleInit,
    scale_dtype: DTypeLike,
    estimator: ste.Estimator,
) -> Quantizer:
    """A grid a layer, carried in the state."""

    def init(w: Float[Array, "..."]) -> State:
        if w.ndim != 3 or w.shape[0] != len(widths):
            raise QuantizerError(
                f"{len(widths)} widths were given for a parameter of shape {w.shape}",
                f"give one width, or one for each layer of parameters stacked as [{len(widths)} k n]",
            )
        return {"scale": scales.start(w, granularity, scale_init, affine), "grid": affine}

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        grid = AffineGrid(*state["grid"])
        return ste.learned_scale(w, ste.stored_scale(state["scale"], scale_dtype), grid, estimator)

    def encode(w: Float[Array, "layers k n"], state: State) -> QTensor:
        raise QuantizerError(
            f"layers of widths {sorted(set(widths))} have no common grid to encode to",
            "encode layer by layer with paretoq(bits) of that layer, as lowbit.export does",
        )

    def standing(w: Float[Array, "layers k n"], state: State) -> Standing:
        return affine_standing(w, state["scale"], AffineGrid(*state["grid"]), granularity, scale_dtype)

    def levels(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return affine_levels(w, state["scale"], AffineGrid(*state["grid"]), scale_dtype)

    return Quantizer(
        name, None, init, encode, fake, granularity, standing=standing, levels=levels, scale_dtype=scale_dtype
    )


def encode_affine(
    w: Float[Array, "*s k n"],
    scale: Float[Array, "*s g m"],
    affine: AffineGrid,
    grid: Grid,
    scale_dtype: DTypeLike,
) -> QTensor:
    """Codes of the levels nearest to w, by the arithmetic that `ste.learned_scale` uses."""
    kept = scales.stored(scale, scale_dtype)
    wide = per_group(affine)
    codes = groups.merge(wide.integers(scales.in_units_of(kept, w)) - wide.first).astype(jnp.uint8)
    return QTensor(codes, kept.astype(scale_dtype), None, grid)


def affine_levels(
    w: Float[Array, "*s k n"], scale: Float[Array, "*s g m"], affine: AffineGrid, scale_dtype: DTypeLike
) -> Float[Array, "*s k n"]:
    """Levels nearest to w, in units of the grid, by the arithmetic that `ste.learned_scale` uses."""
    wide = per_group(affine)
    return groups.merge(wide.level(wide.integers(scales.in_units_of(scales.stored(scale, scale_dtype), w))))
