"""A finished or running run, read back for evaluation, export and verification."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowbit.config import ConfigDict
from lowbit.llama import ActivationRounding, LlamaConfig, param_shapes
from lowbit.llama.activations import Ranges
from lowbit.models.activations import range_variables
from lowbit.train.activations import activation_rounding, empty_ranges, ranges_in
from lowbit.train.adapters import model_rules
from lowbit.train.checkpoints import load_model
from lowbit.train.run_folder import RunFolder
from lowbit.train.state import Tree, merge
from lowbit.tree import Rule, init_state, start_masters, unflatten


class Trained(NamedTuple):
    """What training left behind.

    Attributes:
      config: the run's config.
      cfg: the model's sizes.
      rules: which parameter has which quantizer.
      params: float32 masters, or the codes that took their place, jax arrays on the first device.
      state: {"quant", "grid"}, as `lowbit.tree.fake_quant` takes it.
      tokenizer_files: by name; empty for a run without a tokenizer.
      step: of the checkpoint.
      rounding: how activations are rounded.
      ranges: the static ones of them; they stand in `state["grid"]` as well.
    """

    config: ConfigDict
    cfg: LlamaConfig
    rules: tuple[Rule[Any], ...]
    params: Tree
    state: dict[str, Tree]
    tokenizer_files: dict[str, bytes]
    step: int
    rounding: ActivationRounding
    ranges: Ranges


def load_trained(run_folder: str | Path, step: int | None = None) -> Trained:
    """Reads a checkpoint of a run.

    Args:
      run_folder: of the run.
      step: of the checkpoint; None takes the newest that can be read.

    Raises:
      RunFolderError: no run folder.
      CheckpointError: it holds no readable checkpoint, none of this step, or one of another config.
    """
    folder = RunFolder(Path(run_folder))
    config, cfg, tokenizer_files = folder.read()
    rules = tuple(model_rules(config))
    params = unflatten({path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in param_shapes(cfg).items()})
    shapes = jax.eval_shape(functools.partial(_start, rules), params)
    rounding = activation_rounding(config.activations)
    shapes["grid"] = merge(shapes["grid"], range_variables(empty_ranges(rounding, cfg)))
    variables, found = load_model(folder.checkpoints, shapes, config, step)
    state = {name: variables[name] for name in ("quant", "grid")}
    ranges = ranges_in(variables["grid"], rounding)
    return Trained(config, cfg, rules, variables["params"], state, tokenizer_files, found, rounding, ranges)


def _start(rules: Sequence[Rule[Any]], params: Tree) -> dict[str, Tree]:
    state = init_state(rules, params)
    return {"params": start_masters(rules, params, state), **state}
