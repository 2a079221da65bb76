"""The flags by which a command rounds activations of a model that was not trained so."""

import re

from lowbit import config as configs
from lowbit.cli.usage import UsageError
from lowbit.llama import ActivationRounding, CacheKind
from lowbit.llama.activations import INPUT_CHOICES
from lowbit.train.activations import FLOAT_BITS, activation_rounding


def rounding_of(activations: str | None, kv_bits: str | None) -> ActivationRounding:
    """Returns how `--activations int8-dynamic` and `--kv-bits 4-minmax` round; None leaves activations as they are.

    Raises:
      UsageError: another name or width, a static range, which needs data, or levels of floats.
      QuantizerError: a width that the cache cannot hold.
    """
    settings = configs.base().activations
    settings.kv_bits, settings.kv_symmetric = _cache(kv_bits)
    if activations is not None:
        found = re.fullmatch(r"int([1-9]\d*)-(dynamic|static)", activations)
        if found is None:
            raise UsageError(f"unknown --activations {activations!r}", "give int8-dynamic, or another width of 2 to 8")
        if found[2] == "static":
            raise UsageError(
                f"--activations {activations} needs calibration", "take int8-dynamic, or calibrate by `quantize`"
            )
        settings.bits = int(found[1])
        # In a config 16 means floats, and a flag that asks for integers never does.
        if settings.bits not in INPUT_CHOICES["bits"]:
            raise UsageError(
                f"--activations {activations}: no integers of {found[1]} bits", "take 2 to 8 bits, such as int8-dynamic"
            )
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
    bits = configs.parse(width, int, "--kv-bits")
    if form and bits == FLOAT_BITS:
        raise UsageError(f"--kv-bits {kv_bits}: {bits} leaves keys and values as they are", f"give {bits} alone")
    return bits, not form
