"""Quantizers over whole parameter trees: the plain form that the Flax transform must equal bit for bit."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.errors import QuantizerError, RuleError
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.tree import paths
from lowbit.tree.paths import Tree
from lowbit.tree.rules import Rule, assign

QuantizerRule = Rule[Quantizer | None]

COLLECTIONS = ("quant", "grid")
"""Where state lives: `quant` is learned, `grid` (traced grid parameters) is constant."""


def resolve(rules: Sequence[QuantizerRule], params: Tree) -> dict[str, Quantizer | None]:
    """Gives every parameter its quantizer, and checks that each can do its work.

    Args:
      rules: patterns match paths such as `layers/attn/q_proj/kernel`; None leaves a parameter as it is.
      params: the parameters, or their shapes (`jax.eval_shape`).

    Returns:
      `{path: quantizer or None}`.

    Raises:
      RuleError: a parameter without a rule, a rule that nothing reaches, or parameters whose shape the quantizer cannot
        take (a group that does not divide k); the message prints the paths.
    """
    flat = paths.flatten(params)
    quantizers = assign(rules, flat)
    refused = []
    for path, quantizer in quantizers.items():
        if quantizer is None:
            continue
        try:
            # What a quantizer starts from are float masters, whatever it has put in their place since.
            _check_start(quantizer, jax.ShapeDtypeStruct(flat[path].shape, jnp.float32))
        except QuantizerError as error:
            refused.append((path, quantizer.name, error))
    if refused:
        lines = "; ".join(f"{path} ({name}): {error.cause}" for path, name, error in refused)
        raise RuleError(f"parameters that their quantizer cannot take: {lines}", refused[0][2].mend)
    return quantizers


@functools.lru_cache(maxsize=256)
def _check_start(quantizer: Quantizer, w: jax.ShapeDtypeStruct) -> None:
    """Raises what `init` raises; traced once for kernels of one shape, as every walk asks and a search takes long."""
    jax.eval_shape(quantizer.init, w)


def init_state(rules: Sequence[QuantizerRule], params: Tree) -> dict[str, dict[str, Any]]:
    """Makes the state of every quantizer from the parameters.

    Returns:
      `{"quant": tree, "grid": tree}`: what is learned and what is constant, each at its parameter's path
      (`quant/layers/attn/q_proj/kernel/scale`). Dynamic quantizers and plain floats have no entry.

    Raises:
      RuleError: as `resolve`.
    """
    learned: dict[str, Any] = {}
    constant: dict[str, Any] = {}
    flat = paths.flatten(params)
    for path, quantizer in resolve(rules, params).items():
        if quantizer is None or quantizer.dynamic:
            continue
        state = quantizer.init(jnp.asarray(flat[path]))
        for key, value in state.items():
            if key == "grid":
                constant[path] = value
            else:
                learned[f"{path}/{key}"] = value
    return {"quant": paths.unflatten(learned), "grid": paths.unflatten(constant)}


def start_masters(rules: Sequence[QuantizerRule], params: Tree, state: Mapping[str, Tree]) -> dict[str, Any]:
    """Returns the masters that training starts from: those quantizers that say so put others in the place of weights.

    Args:
      rules: as for `resolve`.
      params: the parameters as they were, of which `init_state` makes its state too.
      state: the collections of `init_state`, or others that take their place.

    Raises:
      RuleError: as `resolve`.
    """
    flat = paths.flatten(params)
    for path, quantizer in resolve(rules, params).items():
        if quantizer is not None and quantizer.masters is not None:
            flat[path] = quantizer.masters(jnp.asarray(flat[path]), state_at(state, path))
    return paths.unflatten(flat)


def state_at(variables: Mapping[str, Tree], path: str) -> State:
    """Collects one parameter's state from the collections of `init_state`."""
    state = dict(paths.get(variables.get("quant", {}), path) or {})
    grid = paths.get(variables.get("grid", {}), path)
    if grid is not None:
        state["grid"] = grid
    return state


def fake_quant(rules: Sequence[QuantizerRule], params: Tree, state: Mapping[str, Tree]) -> dict[str, Any]:
    """Replaces every parameter by what its quantizer makes of it; shapes and dtypes stay.

    Args:
      rules: as for `resolve`.
      params: nested dict of arrays.
      state: from `init_state`, perhaps trained since.

    Returns:
      A tree like `params`; differentiable.
    """
    flat = paths.flatten(params)
    quantized = {}
    for path, quantizer in resolve(rules, params).items():
        w = flat[path]
        if quantizer is not None:
            w = jnp.asarray(w)
            w = quantizer.fake(w, quantizer.state_of(w, state_at(state, path)))
        quantized[path] = w
    return paths.unflatten(quantized)


def encode(rules: Sequence[QuantizerRule], params: Tree, state: Mapping[str, Tree]) -> dict[str, QTensor | jax.Array]:
    """Encodes every parameter for shipping: `{path: QTensor, or a float array in its stored dtype}`.

    Raises:
      RuleError: as `resolve`.
      QuantizerError: layers of one stacked parameter differ in width; encode them one by one (`lowbit.export`).
    """
    flat = paths.flatten(params)
    encoded: dict[str, QTensor | jax.Array] = {}
    for path, quantizer in resolve(rules, params).items():
        w = jnp.asarray(flat[path])
        own = {} if quantizer is None else quantizer.state_of(w, state_at(state, path))
        encoded[path] = w if quantizer is None else quantizer.encode(w, own)
    return encoded
