"""Every quantizer, and the table by which a config names one.

`QUANTIZERS` is also what the laws run over: a quantizer that is not in it is not tested, one that is must pass all.
"""

from collections.abc import Callable

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics.quantizers.adapted import ADAPTER_STARTS, adapted
from lowbit.numerics.quantizers.base import Quantizer, State, transposed
from lowbit.numerics.quantizers.codebook import nf4
from lowbit.numerics.quantizers.doubled import doubled
from lowbit.numerics.quantizers.fixed import fixed
from lowbit.numerics.quantizers.onebit import onebit
from lowbit.numerics.quantizers.paretoq import paretoq
from lowbit.numerics.quantizers.rounding import absmean_ternary, llmqat, rtn
from lowbit.numerics.quantizers.stored import stored_as

QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "paretoq": paretoq,
    "rtn": rtn,
    "llmqat": llmqat,
    "absmean_ternary": absmean_ternary,
    "onebit": onebit,
    "nf4": nf4,
}


def by_name(name: str) -> Callable[..., Quantizer]:
    """Returns the constructor of the named quantizer.

    Raises:
      QuantizerError: no quantizer has that name.
    """
    if name not in QUANTIZERS:
        raise QuantizerError(f"unknown quantizer {name!r}", nearest(name, QUANTIZERS))
    return QUANTIZERS[name]


__all__ = [
    "ADAPTER_STARTS",
    "QUANTIZERS",
    "Quantizer",
    "State",
    "absmean_ternary",
    "adapted",
    "by_name",
    "doubled",
    "fixed",
    "llmqat",
    "nf4",
    "onebit",
    "paretoq",
    "rtn",
    "stored_as",
    "transposed",
]
