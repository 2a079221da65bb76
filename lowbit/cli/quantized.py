"""A model on its way to the file: float masters, rules and quantizer state, from a run or from rounding."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from lowbit import config as configs
from lowbit.cli.activation_flags import rounding_of
from lowbit.cli.origin import Origin, source_path
from lowbit.cli.sources import kind_of, refuse_rounding
from lowbit.cli.usage import UsageError
from lowbit.config import ConfigDict
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, LlamaConfig
from lowbit.llama.activations import Ranges
from lowbit.models import pretrained
from lowbit.train import load_trained
from lowbit.train.provenance import git_commit
from lowbit.train.quantization import FLOAT, quantization_rules
from lowbit.tree import Rule, fake_quant, flatten, init_state, resolve, unflatten
from lowbit.tree.paths import Tree
from lowbit.version import __version__

READS: dict[str, tuple[str, ...]] = {
    "paretoq": ("bits", "granularity", "scale_init"),
    "rtn": ("bits", "granularity", "scale_init"),
    "llmqat": ("bits", "granularity"),
    "absmean_ternary": ("granularity",),
    "onebit": ("granularity", "scale_init"),
    "nf4": ("granularity",),
    FLOAT: (),
}
"""Which of the settings with a flag each method reads; any other flag beside it is a mistake."""


class Quantized(NamedTuple):
    """What `lowbit.export` packs and compares.

    Attributes:
      cfg: the model's sizes.
      params: float32 masters.
      rules: which parameter has which quantizer.
      state: {"quant", "grid"}.
      tokenizer_files: by name; may be empty.
      origin: where it comes from.
      rounding: how its activations are rounded.
      ranges: the static ones of them.
    """

    cfg: LlamaConfig
    params: Tree
    rules: tuple[Rule[Any], ...]
    state: Mapping[str, Tree]
    tokenizer_files: Mapping[str, bytes]
    origin: Origin
    rounding: ActivationRounding = FLOAT_ACTIVATIONS
    ranges: Ranges = MappingProxyType({})

    def decoded(self) -> dict[str, Any]:
        """Returns the parameters as the packed file would decode them."""
        return jax.jit(functools.partial(fake_quant, self.rules))(self.params, self.state)

    def without_adapters(self) -> "Quantized":
        """Returns the model that adapters of a run were trained beside: the product of their factors is 0."""
        quantizers = resolve(self.rules, self.params)
        last = {f"{path}/b" for path, quantizer in quantizers.items() if quantizer is not None and quantizer.adapter}
        learned = {key: np.zeros_like(x) if key in last else x for key, x in flatten(self.state["quant"]).items()}
        state = {**self.state, "quant": unflatten(learned)}
        return self._replace(state=state, origin=dataclasses.replace(self.origin, kind="base"))


def from_run(folder: str, step: int | None = None) -> Quantized:
    """Reads a checkpoint of a run.

    Args:
      folder: of the run.
      step: of the checkpoint; None takes the newest that can be read.

    Raises:
      RunFolderError, CheckpointError, ConfigError: as `lowbit.train.load_trained`.
    """
    path = Path(folder).expanduser()
    run = load_trained(path, step)
    quant = _recorded(run.config.quant.to_dict())
    origin = Origin("run", source_path(folder), quant, run.step, git_commit(), __version__)
    return Quantized(run.cfg, run.params, run.rules, run.state, run.tokenizer_files, origin, run.rounding, run.ranges)


def from_pretrained(
    source: str, quant: Mapping[str, Any], rounding: ActivationRounding = FLOAT_ACTIVATIONS
) -> Quantized:
    """Loads a float model and rounds it without training.

    Args:
      source: as `lowbit.models.pretrained.load`.
      quant: the section `quant` of a config.
      rounding: of its activations; of dynamic ranges.

    Raises:
      LowbitError: the settings or the model are wrong, or do not fit each other; the settings are checked first.
    """
    rules = tuple(quantization_rules(ConfigDict({**quant, "overrides": tuple(quant["overrides"])})))
    loaded = pretrained.load(source)
    state = jax.jit(functools.partial(init_state, rules))(loaded.params)
    origin = Origin("pretrained", source_path(source), _recorded(quant), None, git_commit(), __version__)
    return Quantized(loaded.cfg, loaded.params, rules, state, loaded.tokenizer_files, origin, rounding)


def _recorded(quant: Mapping[str, Any]) -> dict[str, Any]:
    """The section without a width that nothing read; an override may read it for another method."""
    width_is_read = "bits" in READS[quant["method"]] or quant["overrides"]
    return dict(quant) if width_is_read else {**quant, "bits": None}


def from_arguments(arguments: argparse.Namespace) -> Quantized:
    """Returns the model that SOURCE, --method and its companions describe.

    Raises:
      UsageError: a packed file, a run with --method, or a pretrained model without.
    """
    source = arguments.source
    match kind_of(source):
        case "packed":
            raise UsageError(
                f"{source} is a packed file, or the name of one", "give the run or the model it is made of"
            )
        case "run":
            refuse_rounding(arguments)
            return from_run(source)
        case "pretrained":
            quant = rounding(arguments)
            return from_pretrained(source, quant, rounding_of(arguments.activations, arguments.kv_bits))


def rounding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the section `quant` that --method, --bits, --granularity and --scale-init describe, over `config.base()`.

    Raises:
      UsageError: no method, no width for one that needs it, or a setting that the method does not read.
      QuantizerError: an unknown method, width, granularity or start of the scales.
    """
    if arguments.method is None:
        raise UsageError(
            f"{arguments.source} is a float model, and --method is missing",
            "say how to round it, such as --method rtn --bits 4 (--method float keeps float16)",
        )
    quant = configs.base().quant
    quant.method = arguments.method
    if arguments.granularity is not None:
        quant.granularity = configs.parse(arguments.granularity, object, "--granularity")
    if arguments.scale_init is not None:
        quant.scale_init = arguments.scale_init
    if arguments.bits is not None:
        quant.bits = configs.parse(arguments.bits, float, "--bits")
    quantization_rules(quant)
    reads = READS[quant.method]
    for name in ("bits", "granularity", "scale_init"):
        if getattr(arguments, name) is not None and name not in reads:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"--method {quant.method} has no choice of {flag}", f"leave out {flag}")
    if "bits" in reads and arguments.bits is None:
        raise UsageError(f"--method {quant.method} needs --bits", "add --bits B")
    return quant.to_dict()
