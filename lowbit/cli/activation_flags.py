"""The flags by which a command rounds activations of a model that was not trained so."""

import re

from lowbit import config as configs
from lowbit.cli.usage import UsageError
from lowbit.llama import ActivationRounding
from lowbit.train.activations import activation_rounding


def rounding_of(activations: str | None, kv_bits: str | None) -> ActivationRounding:
    """Returns how `--activations int8-dynamic` and `--kv-bits 4-minmax` round; None leaves activations as they are.

    Raises:
      UsageError: another name, or a static range, which needs data.
      QuantizerError: a width that does not exist, or that the cache cannot hold.
    """
    settings = configs.base().activations
    if activations is not None:
        found = re.fullmatch(r"int(\d+)-(dynamic|static)", activations)
        if found is None:
            raise UsageError(f"unknown --activations {activations!r}", "give int8-dynamic, or another width of 2 to 8")
        if found[2] == "static":
            raise UsageError(
                f"--activations {activations} needs calibration", "take int8-dynamic, or calibrate by `quantize`"
            )
        settings.bits = int(found[1])
    if kv_bits is not None:
        width, _, form = kv_bits.partition("-")
        if form not in ("", "minmax"):
            raise UsageError(f"unknown form {form!r} of --kv-bits {kv_bits}", "give a width alone, or 4-minmax")
        settings.kv_bits = configs.parse(width, int, "--kv-bits")
        settings.kv_symmetric = not form
    return activation_rounding(settings)
