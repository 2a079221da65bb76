"""The flags by which a command rounds activations of a model that was not trained so."""

import re

from lowbit import config as configs
from lowbit.cli.usage import UsageError
from lowbit.llama import ActivationRounding, CacheKind
from lowbit.train.activations import FLOAT_BITS, activation_rounding


def rounding_of(activations: str | None, kv_bits: str | None) -> ActivationRounding:
    """Returns how `--activations int8-dynamic` and `--kv-bits 4-minmax` round; None leaves activations as they are.

    Raises:
      UsageError: another name, or a static range, which needs data.
      QuantizerError: a width that does not exist, or that the cache cannot hold.
    """
    settings = configs.base().activations
    settings.kv_bits, settings.kv_symmetric = _cache(kv_bits)
    if activations is not None:
        found = re.fullmatch(r"int(\d+)-(dynamic|static)", activations)
        if found is None:
            raise UsageError(f"unknown --activations {activations!r}", "give int8-dynamic, or another width of 2 to 8")
        if found[2] == "static":
            raise UsageError(
                f"--activations {activations} needs calibration", "take int8-dynamic, or calibrate by `quantize`"
            )
        settings.bits = int(found[1])
    return activation_rounding(settings)


def cache_of(kv_bits: str | None) -> CacheKind | None:
    """Returns what `--kv-bits` holds keys and values as; raises as `rounding_of`."""
    return rounding_of(None, kv_bits).cache


def _cache(kv_bits: str | None) -> tuple[int, bool]:
    """The width, and whether levels are symmetric."""
    if kv_bits is None:
        return FLOAT_BITS, True
    width, _, form = kv_bits.partition("-")
    if form not in ("", "minmax"):
        raise UsageError(f"unknown form {form!r} of --kv-bits {kv_bits}", "give a width alone, or 4-minmax")
    return configs.parse(width, int, "--kv-bits"), not form
