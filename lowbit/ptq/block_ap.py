"""Kernels of a layer that learn together to give what the float layer gives: Block-AP of EfficientQAT."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.llama import LlamaConfig
from lowbit.models.blockwise import apply_block
from lowbit.numerics.quantizers import Quantizer, rtn
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Hidden
from lowbit.ptq.programs import jit
from lowbit.ptq.target import SCALE_DTYPE, Target
from lowbit.train.optimizers import Group, adamw, leaf_paths
from lowbit.train.schedules import make_schedule
from lowbit.train.state import TrainState
from lowbit.train.step import Metrics, make_train_step
from lowbit.tree import unflatten

B1, B2 = 0.9, 0.999
FINAL = 0.05
"""Share of the rates that a cosine leaves at the end."""


def block_ap_learn(
    cfg: LlamaConfig,
    where: str,
    flat: dict[str, Array],
    hidden: Hidden,
    float_hidden: Hidden,
    targets: Mapping[str, Target],
    options: Options,
) -> dict[str, Rounded]:
    """Block-wise training of all parameters of a layer's kernels (EfficientQAT, arXiv 2407.11062, section 3.2).

    Masters, scales and zero points, which begin as rounding has them, descend by Adam on

      mean |layer(x; w_hat) - float_layer(y)|^2

    over batches of calibration sequences: x is what the quantized layers before give and y what the float ones do, so
    that a layer also makes up for errors that reach it. So the reference code has it (OpenGVLab/EfficientQAT); the
    float layer on x would be an easier aim, and errors would add up. Gradients pass the rounding as each grid's
    estimator has it: `ste.learned_scale`, `ste.learned_zero`. Norms and biases stay. The paper takes 4,096 steps of
    4,096 tokens at 1e-5 (2e-5 at 2 bits) for weights and 1e-4 for scales; the defaults here go about as far in fewer
    and larger steps, for far less text. Cost: three passes of the layer a token and epoch.

    Args:
      cfg: the model's sizes.
      where: the layer's name, for errors.
      flat: the float layer.
      hidden: x.
      float_hidden: y.
      targets: of its kernels.
      options: `epochs`, `batch_size`, `weight_rate`, `scale_rate`, and `seed` of the order of sequences.

    Returns:
      The kernels by path.

    Raises:
      QuantizerError: what was learned left the numbers.
    """
    quantizers = tuple((path, _learning(target)) for path, target in targets.items())
    order = _order(hidden.shape[0], hidden.shape[1], options)
    masters, state, w_hat, valid = _learn(cfg, quantizers, options, flat, hidden, float_hidden, order)
    if not bool(valid):
        raise QuantizerError(
            f"the kernels of {where} left the numbers while they learned",
            f"lower --weight-rate (here {options.weight_rate:g}) or --scale-rate ({options.scale_rate:g})",
        )
    return {path: Rounded(w_hat[path], masters[path], state[path], targets[path].quantizer) for path in targets}


def check_block_ap(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Raises QuantizerError for rates or counts with which nothing can be learned."""
    del target, inputs
    if options.epochs < 1 or options.batch_size < 1:
        raise QuantizerError(
            f"{options.epochs} epochs in batches of {options.batch_size} sequences", "give at least one of both"
        )
    for name, rate in (("weight", options.weight_rate), ("scale", options.scale_rate)):
        if not 0.0 <= rate < float("inf"):
            raise QuantizerError(f"a {name} rate of {rate:g}", "give a finite number, 0 for what shall not learn")
    if options.weight_rate == options.scale_rate == 0.0:
        raise QuantizerError(
            "neither weights nor scales would learn", "give one of both a rate, or take the method rtn"
        )


@functools.cache  # a quantizer is its functions: programs compiled for one would not serve its equal
def _learning(target: Target) -> Quantizer:
    """What a target rounds with, with gradients to all that it keeps."""
    assert target.quantizer is not None
    if target.grid == "paretoq":
        return target.quantizer
    symmetric = target.grid == "integer"
    learning = rtn(target.bits, target.granularity, symmetric, scale_dtype=SCALE_DTYPE, learns=True)
    return learning._replace(init=target.quantizer.init)


def _order(batches: int, rows: int, options: Options) -> np.ndarray:
    """Which sequences of `[batches rows t d]` each step sees, i32[steps b 2] of (batch, row); steps are whole."""
    count, rng = batches * rows, np.random.default_rng(options.seed)
    size = min(options.batch_size, count)
    epochs = [rng.permutation(count)[: count - count % size] for _ in range(options.epochs)]
    return np.stack(np.divmod(np.concatenate(epochs), rows), axis=-1).astype(np.int32).reshape(-1, size, 2)


@functools.partial(jit, static_argnames=("cfg", "quantizers", "options"))
def _learn(
    cfg: LlamaConfig,
    quantizers: tuple[tuple[str, Quantizer], ...],
    options: Options,
    flat: dict[str, Array],
    hidden: Hidden,
    float_hidden: Hidden,
    order: Array,
) -> tuple[Any, Any, Any, Any]:
    """Returns (masters, state, rounded kernels, whether all stayed finite), one program for all layers of a model."""
    goal = jax.lax.map(lambda y: apply_block(cfg, unflatten(flat), y), float_hidden)
    start = {
        "params": {path: flat[path] for path, _ in quantizers},
        "quant": {path: quantizer.init(flat[path]) for path, quantizer in quantizers},
    }

    def rounded(variables: Any) -> dict[str, Array]:
        return {path: q.fake(variables["params"][path], variables["quant"][path]) for path, q in quantizers}

    def distance(variables: Any, x: Float[Array, "b t d"], y: Float[Array, "b t d"]) -> Float[Array, ""]:
        return jnp.mean(jnp.square(apply_block(cfg, unflatten({**flat, **rounded(variables)}), x) - y))

    # A loss that begins at 1 keeps Adam's epsilon out of the way, whatever the size of a layer's outputs.
    usual = jnp.mean(jax.lax.map(lambda xy: distance(start, *xy), (hidden, goal)))
    usual = jnp.maximum(usual, jnp.finfo(jnp.float32).tiny)

    def objective(variables: Any, rows: Array) -> tuple[Array, Metrics]:
        of = rows[:, 0], rows[:, 1]
        return distance(variables, hidden[of], goal[of]) / usual, {"tokens": jnp.float32(1)}

    rates = {"params": options.weight_rate, "quant": options.scale_rate}
    groups = {path: Group(learning_rate=rates[path.split("/", 1)[0]]) for path in leaf_paths(start)}
    schedule = make_schedule("cosine", order.shape[0], final=FINAL)
    optimizer = adamw(schedule, 1.0, groups, b1=B1, b2=B2, clip_norm=None)
    step = make_train_step(objective, optimizer)

    def descend(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
        state, metrics = step(state, rows)
        return state, metrics["finite"]

    state, finite = jax.lax.scan(descend, TrainState.create(start, {}, optimizer), order)
    return state.params["params"], state.params["quant"], rounded(state.params), jnp.all(finite)
