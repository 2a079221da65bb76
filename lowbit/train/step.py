"""One optimizer step as a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from lowbit.train.state import TrainState, Tree, merge

Metrics = dict[str, jax.Array]
Objective = Callable[[Tree, jax.Array], tuple[jax.Array, Metrics]]
"""objective(variables, batch i32[b t+1]) -> (loss f32[], metrics).

`metrics["tokens"]` f32[] is the number of tokens that the loss is a mean over: parts of a batch are weighted by
it. All other metrics are scalars that are means over the same tokens.
"""
TrainStep = Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation, accumulate: int = 1) -> TrainStep:
    """Returns step(state, batch i32[a*b t+1]) -> (state, metrics), pure: it may be jitted, vmapped and sharded.

    With `accumulate` = a > 1 the batch is cut into a parts that are visited one after another; gradients are
    summed in float32, each part weighted by its tokens, so the step equals that of the whole batch up to
    the order of float32 sums.

    metrics: those of the objective, and
      loss: the objective's value before the update;
      grad_norm, param_norm: global L2 norms over `state.params`, the gradient's before any clipping;
      finite: whether loss, grad_norm and the parameters' norm after the update are finite;
      learning_rate: the one just used, if the optimizer's state carries an entry of that name.

    Raises:
      ValueError: `accumulate` is below 1, or (when traced) does not divide the batch.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, not {accumulate}")

    def loss_of(params: Tree, constants: Tree, batch: jax.Array) -> tuple[jax.Array, Metrics]:
        return objective(merge(params, constants), batch)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: TrainState, batch: Int32[Array, "b t"]) -> tuple[TrainState, Metrics]:
        if accumulate == 1:
            (loss, metrics), grads = gradient(state.params, state.constants, batch)
        else:
            loss, metrics, grads = _accumulated(gradient, state, batch, accumulate)
        with jax.named_scope("optimizer"):  # names in profiles
            grad_norm = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = metrics | {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            # The update too: what it breaks would else be saved, and the last step's never be noticed.
            "finite": jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(params)),
        }
        learning_rate = optax.tree.get(opt_state, "learning_rate")
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate
        return TrainState(state.step + 1, params, state.constants, opt_state), metrics

    return step


def _accumulated(
    gradient: Callable[..., Any], state: TrainState, batch: jax.Array, parts: int
) -> tuple[Float32[Array, ""], Metrics, Tree]:
    rows = batch.shape[0]
    if rows % parts:
        raise ValueError(f"a batch of {rows} rows cannot be cut into {parts} equal parts")
    # Part i takes rows i, i + parts, ...: a batch sharded over its rows is then cut without moving a row.
    cut = batch.reshape(rows // parts, parts, *batch.shape[1:]).swapaxes(0, 1)

    def weighted(part: jax.Array) -> tuple[jax.Array, Metrics, Tree]:
        (loss, metrics), grads = gradient(state.params, state.constants, part)
        tokens = metrics["tokens"]
        scaled = jax.tree.map(lambda x: x.astype(jnp.float32) * tokens, (loss, metrics, grads))
        return scaled[0], scaled[1] | {"tokens": tokens}, scaled[2]

    def add(total: Any, part: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, weighted(part)), None

    shapes = jax.eval_shape(weighted, cut[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (loss, metrics, grads), _ = jax.lax.scan(add, zeros, cut)
    tokens = metrics["tokens"]
    mean_loss, mean_metrics, mean_grads = jax.tree.map(lambda x: x / tokens, (loss, metrics, grads))
    return mean_loss, mean_metrics | {"tokens": tokens}, mean_grads
