"""From the section `activations` of a config to how a model rounds its activations, and the ranges that this needs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lowbit.config import ConfigDict
from lowbit.data import TokenWindows
from lowbit.errors import ConfigError, NonFiniteError, nearest
from lowbit.llama import LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig
from lowbit.llama.activations import INPUT_CHOICES, Ranges, range_shapes
from lowbit.models import Transformer
from lowbit.models.activations import STATE, input_quantizer, watched, watching
from lowbit.models.placement import on_mesh
from lowbit.numerics.activations import Range, range_state, widest
from lowbit.train import sharding
from lowbit.train.overrides import changes
from lowbit.train.state import Tree
from lowbit.tree import Rule, assign
from lowbit.tree.paths import get

FLOAT_BITS = 16
"""How a config says that something is not rounded."""


def activation_rounding(settings: ConfigDict) -> ActivationRounding:
    """Returns how the section `activations` of a config has activations rounded.

    Its overrides, and then what it says of all linear layers, are rules over `LINEARS`.

    Raises:
      ConfigError: an override of another form, or with an unknown key.
      QuantizerError: a width, granularity, range or variant that does not exist, or a width that no cache can hold.
      RuleError: a rule that no linear layer reaches.
    """
    common = {name: settings[name] for name in InputRounding._fields}
    rules: list[Rule[InputRounding | None]] = []
    example = '("layers/mlp/down_proj", {"bits": 8})'
    for pattern, changed in changes(settings.overrides, "activations", common, example):
        rules.append(Rule(pattern, _input_rounding({**common, **changed})))
    found = assign([*rules, Rule(".*", _input_rounding(common))], LINEARS)
    cache = None
    if settings.kv_bits != FLOAT_BITS:
        cache = CacheKind(settings.kv_bits, settings.kv_symmetric, settings.kv_per_head, settings.kv_rotated)
    return ActivationRounding(tuple((path, one) for path, one in found.items() if one is not None), cache)


def _input_rounding(settings: Mapping[str, Any]) -> InputRounding | None:
    for name in ("granularity", "range", "variant"):  # also where nothing is rounded: a name that is not may be meant
        if settings[name] not in INPUT_CHOICES[name]:
            raise ConfigError(
                f"unknown activations.{name} {settings[name]!r}", nearest(str(settings[name]), INPUT_CHOICES[name])
            )
    if settings["bits"] == FLOAT_BITS:
        return None
    if settings["range"] == "static" and settings["variant"] != "fixed":
        raise ConfigError(
            f"activations.variant={settings['variant']!r} is a dynamic range, and activations.range is static",
            "leave out one of both",
        )
    rounding = InputRounding(**settings)
    input_quantizer(rounding)  # which refuses what cannot be
    return rounding


def calibrate(
    model: Transformer,
    params: Tree,
    rounding: ActivationRounding,
    windows: TokenWindows,
    *,
    count: int,
    batch_size: int,
    mesh: Mesh,
) -> Ranges:
    """Returns the static ranges of a model: the widest that the inputs of its linear layers take on some text.

    Args:
      model: with float parameters, and keys and values as they will be.
      params: of it.
      rounding: which inputs have a static range.
      windows: of the text; all processes are given the same.
      count: how many of them, from the first; all where there are fewer.
      batch_size: windows at a time.
      mesh: the devices.

    Raises:
      NonFiniteError: some input is not finite.
    """
    whole = NamedSharding(mesh, sharding.REPLICATED)
    watcher = model.clone(hooks=watching(model.hooks))

    def noted(variables: Tree, tokens: jax.Array) -> dict[str, Range]:
        _, kept = watcher.apply(variables, tokens, method="hidden", mutable=["intermediates"])
        return watched(kept["intermediates"])

    program = jax.jit(on_mesh(mesh, noted), out_shardings=whole)
    variables = {"params": jax.device_put(params, sharding.variable_shardings(mesh, {"params": params})["params"])}
    found: dict[str, Range] = {}
    for start in range(0, min(count, len(windows)), batch_size):
        tokens = windows[start : min(start + batch_size, count)][:, :-1]
        new = jax.device_get(program(variables, jax.device_put(tokens, whole)))
        found = {path: widest(found[path], own) if found else own for path, own in new.items()}
    return {path: _ranges(path, one, found[path]) for path, one in rounding.inputs if one.range == "static"}


def _ranges(path: str, rounding: InputRounding, found: Range) -> dict[str, np.ndarray]:
    """The state of one linear layer, from the range f32[L 1 k] of each channel."""
    low, high = np.asarray(found.low), np.asarray(found.high)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise NonFiniteError(f"an input of {path} is not finite", "look at the weights of model.source")
    if rounding.granularity == "tensor":
        low, high = low.min(axis=-1, keepdims=True), high.max(axis=-1, keepdims=True)
    state = range_state(Range(jnp.asarray(low), jnp.asarray(high)), rounding.bits, rounding.symmetric)
    return {key: np.asarray(leaf) for key, leaf in state.items()}


def empty_ranges(rounding: ActivationRounding, cfg: LlamaConfig) -> Ranges:
    """Returns ranges of the right shapes, to be filled from a checkpoint or to be counted."""
    return {
        path: {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
        for path, shapes in range_shapes(rounding, cfg).items()
    }


def ranges_in(grid: Tree, rounding: ActivationRounding) -> Ranges:
    """Returns the ranges that stand in the collection "grid" of a run, `models.activations.range_variables` of them."""
    return {
        path: {key: np.asarray(leaf) for key, leaf in get(grid, f"{path}/{STATE}").items()}
        for path, one in rounding.inputs
        if one.range == "static"
    }
