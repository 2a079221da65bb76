"""The quantizer of everything that stays float: it rounds to what the file holds."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.numerics import ste
from lowbit.numerics.quantizers.base import Quantizer, State
from lowbit.numerics.scales import check_dtype


def stored_as(dtype: DTypeLike) -> Quantizer:
    """Rounds to a stored float dtype in the forward pass; gradients pass unchanged.

    With it on norms, embedding and head, the shipped model is the trained one in every parameter, not just in the
    quantized matrices. Values beyond the dtype's range become its largest finite value.

    Raises:
      QuantizerError: the dtype is not float16, bfloat16 or float32.
    """
    name = check_dtype(dtype, "a parameter")
    largest = float(jnp.finfo(dtype).max)

    def rounded(w: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        return jnp.clip(w.astype(jnp.float32), -largest, largest).astype(dtype)

    def init(w: Float[Array, "*dims"]) -> State:
        return {}

    def fake(w: Float[Array, "*dims"], state: State) -> Float[Array, "*dims"]:
        w_hat = jax.lax.stop_gradient(rounded(w)).astype(w.dtype)
        return ste.passthrough(w, w_hat)

    def encode(w: Float[Array, "*dims"], state: State) -> Float[Array, "*dims"]:
        return rounded(w)

    return Quantizer(name, None, init, encode, fake, granularity=None)
