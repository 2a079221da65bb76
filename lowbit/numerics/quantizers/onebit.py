"""OneBit: the signs of a matrix and two vectors of values (arXiv 2402.11295)."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics import groups, scales, ste, svid
from lowbit.numerics.grids import elastic_binary, freeze
from lowbit.numerics.groups import Granularity
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.standing import Standing


def onebit(
    granularity: Granularity = "channel",
    scale_init: str = "mse",
    scale_dtype: DTypeLike = jnp.float16,
    latent: float = 0.0,
) -> Quantizer:
    """`w_hat = sign(W) * scale * in_scale`: a value for each output and one for each input, both learned.

    Example:
      >>> quantizer = onebit()
      >>> state = quantizer.init(w)            # {"scale": f32[*s 1 n], "in_scale": f32[*s k 1]}
      >>> w_hat = quantizer.fake(w, state)

    A `[k n]` matrix costs `1 + 16/k + 16/n` bits a weight (1.0078 at 4096 x 4096; the paper's 1.0073 counts a model).

    Args:
      granularity: how many weights share a value of `scale`; the paper has one an output channel. Groups of inputs have
        a decomposition each.
      scale_init: where the vectors start (`svid.STARTS`): "svd" or "nmf", which find the decomposition of least squared
        error (and so does "mse"), or "mean", one mean magnitude an output.
      scale_dtype: what the file stores of both vectors; they are rounded to it in the forward pass.
      latent: every float master starts at this magnitude, its sign kept, as the reference code has it (0.01); 0
        leaves the magnitudes as they are, so that small weights change their signs first.

    Returns:
      A quantizer. Gradients: `ste.signs_between`. Differences from the reference code: a value stays at or above
      `scales.FLOOR`, as signs are the matrix's alone, and a weight of exactly 0 counts as positive.

    Raises:
      QuantizerError: an unknown granularity or start, a scale dtype that no file holds, or a negative `latent`; from
        init, a group that does not divide k.
    """
    groups.check_granularity(granularity)
    scales.check_dtype(scale_dtype, "a scale")
    start = svid.by_name(scale_init)
    if not 0.0 <= latent < float("inf"):
        raise QuantizerError(f"masters cannot start at a magnitude of {latent}", "give a finite number, 0 to keep them")
    grid = freeze("binary", 2, elastic_binary())

    def init(w: Float[Array, "..."]) -> State:
        groups.check(w.shape, granularity)
        *stacked, k, _ = w.shape
        magnitude = jnp.abs(w.astype(jnp.float32))
        if granularity == "tensor":  # one value for all outputs: they stand for each other
            magnitude = jnp.mean(magnitude, axis=-1, keepdims=True)
        parts = magnitude.reshape(*stacked, groups.group_count(w.shape, granularity), -1, magnitude.shape[-1])
        inputs, outputs = start(parts)
        return {"scale": outputs, "in_scale": inputs.reshape(*stacked, k, 1)}

    def kept(state: State) -> tuple[Float[Array, "*s g m"], Float[Array, "*s k 1"]]:
        return ste.stored_scale(state["scale"], scale_dtype), ste.stored_scale(state["in_scale"], scale_dtype)

    def fake(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return ste.signs_between(w, *kept(state))

    def encode(w: Float[Array, "*s k n"], state: State) -> QTensor:
        scale, in_scale = (vector.astype(scale_dtype) for vector in kept(state))
        return QTensor(codes(w), scale, None, grid, in_scale=in_scale)

    def codes(w: Float[Array, "*s k n"]) -> Array:
        return (w >= 0).astype(jnp.uint8)

    def standing(w: Float[Array, "*s k n"], state: State) -> Standing:
        return Standing(codes(w), jnp.zeros(w.shape, bool), None)

    def masters(w: Float[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        return jnp.where(w >= 0, latent, -latent).astype(w.dtype)

    return Quantizer(
        "onebit", grid, init, encode, fake, granularity, standing=standing, masters=masters if latent else None
    )
