"""Rounding to nearest, weight by weight."""

import functools
from collections.abc import Sequence

from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target


def nearest_round(
    path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options
) -> Rounded:
    """Every weight by itself to the nearest level, over the target's range: min-max, percentile or mean square.

    With groups it is ZeroQuant's weights (arXiv 2206.01861, section 3.1). Needs no data; one pass over the weights,
    36 for the mean-square range.
    """
    del path, moments, options
    assert target.quantizer is not None
    w_hat, state = nearest(w, target.quantizer)
    return Rounded(w_hat, w, state, target.quantizer)


@functools.partial(jit, static_argnames=("quantizer",))
def nearest(w: Float[Array, "k n"], quantizer: Quantizer) -> tuple[Float[Array, "k n"], State]:
    """Returns what the quantizer makes of w with the state that it begins with, and that state."""
    state = quantizer.init(w)
    return quantizer.fake(w, state), state


def check_groups(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Raises QuantizerError where scales are not per group: ZeroQuant is group-wise."""
    del options, inputs
    if not isinstance(target.granularity, int):
        raise QuantizerError(
            f"zeroquant has scales per group, and the granularity is {target.granularity!r}",
            "give a group size such as 64, or take the method rtn",
        )
