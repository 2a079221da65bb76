"""What a training step reads and writes: one pytree, and how a model's variables are cut into it."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run between two steps.

    Attributes:
      step: i32[], how many steps have been taken.
      params: collections that the optimizer moves: "params" and "quant", float32 masters.
      constants: collections that no gradient reaches: "grid", frozen leaves of "params" and "quant", a teacher.
        A leaf stands in `params` or in `constants`, never in both.
      opt_state: the optimizer's state for `params`.
    """

    step: Any  # jax.Array; in trees of the same form a sharding or a shape
    params: Tree
    constants: Tree
    opt_state: optax.OptState

    @classmethod
    def create(cls, params: Tree, constants: Tree, optimizer: optax.GradientTransformation) -> "TrainState":
        """Returns the state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, constants, optimizer.init(params))

    @property
    def variables(self) -> Tree:
        """What `model.apply` takes: `params` and `constants` in one tree."""
        return merge(self.params, self.constants)


def merge(a: Tree, b: Tree) -> Tree:
    """Returns the union of two nested dicts that share no leaf; raises ValueError naming a leaf that both hold."""
    union = dict(a)
    for key, value in b.items():
        if key not in union:
            union[key] = value
        elif isinstance(union[key], dict) and isinstance(value, dict):
            union[key] = merge(union[key], value)
        else:
            raise ValueError(f"both trees hold the leaf {key!r}")
    return union


def split(tree: Tree, paths: Collection[str]) -> tuple[Tree, Tree]:
    """Returns (the leaves of `tree` at the "a/b/c" `paths`, all other leaves); `merge` is its inverse."""
    chosen, rest = _split(tree, frozenset(paths), "")
    return chosen, rest


def _split(tree: Tree, paths: frozenset[str], prefix: str) -> tuple[Tree, Tree]:
    chosen: Tree = {}
    rest: Tree = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            inner_chosen, inner_rest = _split(value, paths, path + "/")
            if inner_chosen:
                chosen[key] = inner_chosen
            # An empty collection ("quant" of a float model) stays where it was.
            if inner_rest or not inner_chosen:
                rest[key] = inner_rest
        else:
            (chosen if path in paths else rest)[key] = value
    return chosen, rest
