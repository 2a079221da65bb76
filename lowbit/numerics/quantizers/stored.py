"""The quantizer of everything that stays float: it rounds to what the file holds."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics import ste
from lowbit.numerics.quantizers.base import Quantizer, State

FLOAT_DTYPES = ("float16", "bfloat16", "float32")


def stored_as(dtype: DTypeLike) -> Quantizer:
    """Rounds to a stored float dtype in the forward pass; gradients pass unchanged.

    With it on norms, embedding and head, the shipped model is the trained one in every parameter, not just in the
    quantized matrices. Values beyond the dtype's range become its largest finite value.

    Raises:
      QuantizerError: the dtype is not float16, bfloat16 or float32.
    """
    name = jnp.dtype(dtype).name
    if name not in FLOAT_DTYPES:
        raise QuantizerError(f"a parameter cannot be stored as {name!r}", f"choose from {', '.join(FLOAT_DTYPES)}")
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
