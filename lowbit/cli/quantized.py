"""A model on its way to the file: float masters, rules and quantizer state, from a run or from rounding."""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lowbit import config as configs
from lowbit.cli.origin import Origin
from lowbit.cli.sources import kind_of, refuse_rounding
from lowbit.cli.usage import UsageError
from lowbit.config import ConfigDict
from lowbit.llama import LlamaConfig
from lowbit.models import pretrained
from lowbit.train import load_trained
from lowbit.train.provenance import git_commit
from lowbit.train.quantization import FLOAT, quantization_rules
from lowbit.tree import Rule, fake_quant, init_state
from lowbit.tree.paths import Tree
from lowbit.version import __version__

WIDTHLESS = (FLOAT, "absmean_ternary")
"""Methods that have no choice of width."""


class Quantized(NamedTuple):
    """What `lowbit.export` packs and compares.

    Attributes:
      cfg: the model's sizes.
      params: float32 masters.
      rules: which parameter has which quantizer.
      state: {"quant", "grid"}.
      tokenizer_files: by name; may be empty.
      origin: where it comes from.
    """

    cfg: LlamaConfig
    params: Tree
    rules: tuple[Rule[Any], ...]
    state: Mapping[str, Tree]
    tokenizer_files: Mapping[str, bytes]
    origin: Origin

    def decoded(self) -> dict[str, Any]:
        """Returns the parameters as the packed file would decode them."""
        return jax.jit(functools.partial(fake_quant, self.rules))(self.params, self.state)


def from_run(folder: str) -> Quantized:
    """Reads the newest checkpoint of a run.

    Raises:
      RunFolderError, CheckpointError, ConfigError: as `lowbit.train.load_trained`.
    """
    run = load_trained(Path(folder).expanduser())
    origin = Origin("run", folder, run.config.quant.to_dict(), run.step, git_commit(), __version__)
    return Quantized(run.cfg, run.params, run.rules, run.state, run.tokenizer_files, origin)


def from_pretrained(source: str, quant: Mapping[str, Any]) -> Quantized:
    """Loads a float model and rounds it without training.

    Args:
      source: as `lowbit.models.pretrained.load`.
      quant: the section `quant` of a config.

    Raises:
      LowbitError: the settings or the model are wrong, or do not fit each other; the settings are checked first.
    """
    rules = tuple(quantization_rules(ConfigDict({**quant, "overrides": tuple(quant["overrides"])})))
    loaded = pretrained.load(source)
    state = jax.jit(functools.partial(init_state, rules))(loaded.params)
    origin = Origin("pretrained", source, dict(quant), None, git_commit(), __version__)
    return Quantized(loaded.cfg, loaded.params, rules, state, loaded.tokenizer_files, origin)


def restore(origin: Origin) -> Quantized:
    """Makes again what a packed file was made from."""
    return from_run(origin.path) if origin.kind == "run" else from_pretrained(origin.path, origin.quant)


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
            return from_pretrained(source, rounding(arguments))


def rounding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the section `quant` that --method, --bits, --granularity and --scale-init describe, over `config.base()`.

    Raises:
      UsageError: no method, or a width where there is no choice, or none where there is.
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
    if (arguments.bits is None) != (arguments.method in WIDTHLESS):
        raise UsageError(
            f"--method {arguments.method} " + ("needs --bits" if arguments.bits is None else "has no choice of --bits"),
            "add --bits B" if arguments.bits is None else "leave out --bits",
        )
    return quant.to_dict()
