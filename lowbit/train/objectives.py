"""What a run minimizes. An objective is a value: another method is another function, in the same loop."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from lowbit.train.losses import cross_entropy, token_nll
from lowbit.train.state import Tree
from lowbit.train.step import Metrics, Objective


def next_token(model: nn.Module, chunks: int = 8) -> Objective:
    """Returns the objective of language modelling: mean cross entropy in nats per token.

    Args:
      model: `lowbit.models.Transformer`; its quantizers, if any, are part of it.
      chunks: see `losses.token_nll`.
    """

    def objective(variables: Tree, batch: Int32[Array, "b tokens"]) -> tuple[jax.Array, Metrics]:
        hidden, head = _hidden_and_head(model, variables, batch)
        targets = batch[:, 1:]
        with jax.named_scope("loss"):  # a name in profiles
            loss = cross_entropy(hidden, head, targets, chunks)
        return loss, {"tokens": jnp.float32(targets.size)}

    return objective


def nll_function(model: nn.Module, chunks: int = 8) -> Callable[[Tree, jax.Array], jax.Array]:
    """Returns nll(variables, batch i32[b t+1]) -> nats f32[b t]: what evaluation sums up."""
    return functools.partial(_nll, model, chunks)


def _nll(model: nn.Module, chunks: int, variables: Tree, batch: Int32[Array, "b tokens"]) -> Float32[Array, "b t"]:
    hidden, head = _hidden_and_head(model, variables, batch)
    return token_nll(hidden, head, batch[:, 1:], chunks)


def _hidden_and_head(model: nn.Module, variables: Tree, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs: Any = model.apply(variables, batch[:, :-1], method="hidden_and_head")
    return outputs
