"""From a SOURCE on the command line, and the flags beside it, to a model that can be evaluated."""

import argparse
import importlib.util

from lowbit.cli.packed_file import open_model
from lowbit.cli.sources import ROUNDING_FLAGS, asks_for_rounding, kind_of, refuse_rounding
from lowbit.cli.usage import UsageError
from lowbit.evals.predictor import Predictor


def from_arguments(arguments: argparse.Namespace) -> Predictor:
    """Returns the model that SOURCE, --backend, --no-verify, --method and its companions describe.

    Raises:
      UsageError: flags that are not for this kind of source.
      LowbitError: the source is missing, damaged, or does not fit the flags.
    """
    kind = kind_of(arguments.source)
    if kind == "packed":
        return _packed(arguments)
    if arguments.backend in ("numpy", "integer"):
        raise UsageError(
            f"--backend {arguments.backend} runs packed files, and {arguments.source} is none", "export it first"
        )
    if not arguments.verify:
        raise UsageError(f"--no-verify is for packed files, and {arguments.source} is none", "leave it out")
    from lowbit.cli import quantized
    from lowbit.evals import jax_predictor

    if kind == "run" or asks_for_rounding(arguments):
        model = quantized.from_arguments(arguments)
        return jax_predictor.predictor(model.cfg, model.decoded(), model.tokenizer_files, model.rounding, model.ranges)
    return jax_predictor.pretrained_predictor(arguments.source)


def from_source(source: str) -> Predictor:
    """Returns the model that lies at a run folder, packed file, or float model's place, as it is; raises the same."""
    plain = argparse.Namespace(source=source, backend=None, verify=True, **dict.fromkeys(ROUNDING_FLAGS))
    return from_arguments(plain)


def _packed(arguments: argparse.Namespace) -> Predictor:
    refuse_rounding(arguments)
    packed, cfg = open_model(arguments.source, verify=arguments.verify)
    backend = arguments.backend or _default_backend()
    if backend != "numpy":
        from lowbit.evals import jax_predictor

        make = jax_predictor.packed_predictor if backend == "jax" else jax_predictor.integer_predictor
        return make(cfg, packed)
    from lowbit.evals import numpy_predictor

    return numpy_predictor.predictor(packed)


def _default_backend() -> str:
    return "jax" if importlib.util.find_spec("jax") else "numpy"
