"""The flight recorder: what training does to the codes, scales and weights of each quantized matrix, layer by layer.

Each record is a function of the states before and after one step and of the start of the run, so that nothing is
carried from record to record and a resumed run writes what an undisturbed one would have written. docs/recorder.md
says what each figure means and what it costs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, UInt8

from lowbit.numerics import low_rank
from lowbit.numerics.low_rank import Factors
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import Quantizer
from lowbit.train import sharding
from lowbit.train.metrics import JsonLines
from lowbit.train.run_folder import RunFolder
from lowbit.train.setup import Experiment
from lowbit.train.state import TrainState, Tree
from lowbit.train.step import Metrics, TrainStep
from lowbit.tree import Rule, flatten, init_state, resolve, start_masters
from lowbit.tree.apply import state_at

Watched = dict[str, tuple[Array, Any]]
"""{path: (weights, state of their quantizer)}; dynamic quantizers have an empty state."""

Record = dict[str, dict[str, Array]]
"""{path: {figure: f32[L], and "levels": f32[L levels]}}, L = 1 for a parameter that is not stacked."""

Marks = dict[str, Array | Factors]
"""{path: what a step may move}: codes u8[*s k n], or the factors of an adapter, beside which codes stay."""

DIGITS = 5
"""What is written of each number: a record is for reading and drawing."""


class Recorder:
    """Records a step now and then: every so many, and the last.

    Args:
      experiment: the run, mesh and interval (`log.recorder_every_steps`, 0 for never) included.
      folder: where recorder.jsonl goes.
      start: steps done; later lines of an existing file are dropped.
      steps: of the whole run.
      writes: whether this process is the one that writes.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, *, start: int, steps: int, writes: bool = True):
        self._every, self._steps = experiment.config.log.recorder_every_steps, steps
        self._pending: list[tuple[int, Record]] = []
        self._lines: JsonLines | None = None
        self._quantizers = watched_quantizers(experiment.rules, experiment.params)
        if not self._every or not self._quantizers:
            return
        self._lines = JsonLines(folder.recorder, start, writes)
        self._reference = reference(self._quantizers, experiment)
        # Compiled here, so that it is no part of the speed of the steps that are recorded.
        state = experiment.abstract_state()
        self._codes = jax.jit(self._codes_of).lower(state).compile()
        before = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            jax.eval_shape(self._codes_of, state),
            self._codes.output_shardings,
        )
        whole = NamedSharding(experiment.mesh, sharding.REPLICATED)
        self._measure = jax.jit(self._measured, out_shardings=whole).lower(state, before, self._reference).compile()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def watch(self, step: int, step_fn: TrainStep, state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics]:
        """Takes step number `step`, and records it if it is one to record; nothing waits for the device."""
        if self._lines is None or (step % self._every and step != self._steps):
            return step_fn(state, batch)
        before = self._codes(state)
        after, metrics = step_fn(state, batch)
        self._pending.append((step, self._measure(after, before, self._reference)))
        return after, metrics

    def write(self, upto: int) -> None:
        """Writes the records of the steps up to `upto`, waiting for those that the device has not finished."""
        due = [(step, record) for step, record in self._pending if step <= upto]
        self._pending = self._pending[len(due) :]
        for step, record in due:
            assert self._lines is not None
            parameters = {path: self._row(path, figures) for path, figures in jax.device_get(record).items()}
            self._lines.write({"step": step, "parameters": parameters})

    def _row(self, path: str, figures: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Nested lists of a few digits each, and of each layer no more levels than it has."""
        row: dict[str, list[Any]] = {name: _rounded(figure) for name, figure in figures.items() if name != "levels"}
        quantizer = self._quantizers[path]
        own = [len(_levels(quantizer, layer)) for layer in range(len(figures["levels"]))]
        return row | {"levels": [_rounded(of[:count]) for of, count in zip(figures["levels"], own, strict=True)]}

    def _codes_of(self, state: TrainState) -> Marks:
        return codes(self._quantizers, watched(self._quantizers, state.variables))

    def _measured(self, state: TrainState, before: Marks, start: Watched) -> Record:
        return measure(self._quantizers, watched(self._quantizers, state.variables), before, start)


def watched_quantizers(rules: Sequence[Rule[Any]], params: Tree) -> dict[str, Quantizer]:
    """Returns the quantizer of each parameter that has codes; raises RuleError as `resolve` does."""
    found = {path: q for path, q in resolve(rules, params).items() if q is not None}
    return {path: quantizer for path, quantizer in found.items() if quantizer.standing is not None or quantizer.adapter}


def watched(quantizers: Mapping[str, Quantizer], variables: Tree) -> Watched:
    """Picks what is measured from {"params", "quant", "grid"}."""
    params = flatten(variables["params"])
    return {path: (params[path], state_at(variables, path)) for path in quantizers}


def codes(quantizers: Mapping[str, Quantizer], now: Watched) -> Marks:
    """Returns the codes u8[*s k n] of each path, or the factors of its adapter; pure."""
    return {
        path: _kept(quantizers[path], *pair).adapter
        if quantizers[path].adapter
        else _standing(quantizers[path], *pair).codes
        for path, pair in now.items()
    }


def measure(
    quantizers: Mapping[str, Quantizer], now: Watched, before: Mapping[str, Any], start: Watched
) -> dict[str, dict[str, Array]]:
    """Returns the record of a step; pure, so it may be jitted and sharded.

    Args:
      quantizers: by path.
      now: after the step.
      before: `codes` before it.
      start: of the run; its weights may be in a narrower dtype that holds them exactly. An adapter needs none.

    Returns:
      For each path and layer, as shares of its weights unless something else is said:
        flips: codes that this step changed;
        moved: codes that differ from those of the start;
        idle_rows, stuck_rows: output channels without a flip in this step, and without a moved code;
        dead_rows: output channels whose codes are all equal;
        clipped: weights outside of the range of their grid;
        levels: each level's own share, zeros behind the last where layers differ in width;
        drift: geometric mean of scale / mean-square-optimal scale over a sample of channels (`Standing.drift`);
        change, change_l2: |W - W0| / |W0| in the L1 and the L2 norm.
      Of a matrix with an adapter, whose codes and scales stay, levels, and as shares of |decode(codes)|, L2 norms all:
        update: |a b|, both as the file holds them, alpha / r included;
        update_step: |a b - a b before the step|.
    """
    return {
        path: _updated(quantizers[path], *now[path], before[path])
        if quantizers[path].adapter
        else _measured(quantizers[path], *now[path], before[path], *start[path])
        for path in now
    }


def reference(quantizers: Mapping[str, Quantizer], experiment: Experiment) -> Watched:
    """Returns the start of a run on its devices: float masters in the narrowest dtype that holds them exactly.

    Published weights are of 16 bits, and cost 2 bytes each here; masters that a quantizer put in their place cost 4. It
    is made from `experiment.params` and `experiment.scales`, as the first state is, by one program, so that a run that
    begins and one that resumes have the same. Matrices with adapters are left out: none of their figures is about the
    start, and that of LoftQ takes long to make.
    """
    params = flatten(experiment.params)
    quantizers = {path: quantizer for path, quantizer in quantizers.items() if not quantizer.adapter}
    dtypes = {
        path: narrowest(np.asarray(params[path])) if quantizer.masters is None else np.dtype(np.float32)
        for path, quantizer in quantizers.items()
    }
    places = flatten(sharding.variable_shardings(experiment.mesh, {"params": experiment.params})["params"])

    def start_of(masters: dict[str, Array], scales: Tree | None) -> Watched:
        rules: list[Rule[Quantizer | None]] = [Rule(path, quantizer) for path, quantizer in quantizers.items()]
        state = init_state(rules, masters) | ({} if scales is None else scales)
        start = watched(quantizers, {"params": start_masters(rules, masters, state), **state})
        return {path: (w.astype(dtypes[path]), state) for path, (w, state) in start.items()}

    masters = {path: jax.device_put(params[path], places[path]) for path in quantizers}
    return jax.jit(start_of)(masters, experiment.scales)


def narrowest(w: np.ndarray) -> np.dtype:
    """Returns bfloat16, float16 or float32: the first that holds the float32 values exactly."""
    for dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        with np.errstate(over="ignore"):
            if np.array_equal(w.astype(dtype).astype(np.float32), w):
                return dtype
    return np.dtype(np.float32)


def _standing(quantizer: Quantizer, w: Array, state: Any) -> Any:
    assert quantizer.standing is not None
    return quantizer.standing(w, quantizer.state_of(w, state))


def _kept(quantizer: Quantizer, w: Array, state: Any) -> QTensor:
    kept = quantizer.encode(w, state)
    assert isinstance(kept, QTensor)
    return kept


def _updated(quantizer: Quantizer, codes: Array, state: Any, before: Factors) -> dict[str, Array]:
    kept = _kept(quantizer, codes, state)
    layers = codes.shape[0] if codes.ndim > 2 else 1
    base = _norm(dataclasses.replace(kept, adapter=None).decode(), 2)
    update = low_rank.product(*kept.adapter)
    figures = {
        "update": _norm(update, 2) / base,
        "update_step": _norm(update - low_rank.product(*before), 2) / base,
    }
    return {name: figure.reshape(layers) for name, figure in figures.items()} | {
        "levels": _level_shares(kept.codes, len(_levels(quantizer, 0)), layers)
    }


def _measured(
    quantizer: Quantizer, w: Array, state: Any, before: UInt8[Array, "*s k n"], w0: Array, state0: Any
) -> dict[str, Array]:
    w0 = w0.astype(jnp.float32)
    now, start = _standing(quantizer, w, state), _standing(quantizer, w0, state0)
    flips, moved = now.codes != before, now.codes != start.codes
    layers = w.shape[0] if w.ndim > 2 else 1
    levels = max(len(_levels(quantizer, index)) for index in range(layers))
    least, most = jnp.min(now.codes, axis=-2), jnp.max(now.codes, axis=-2)
    figures = {
        "flips": _share(flips, (-2, -1)),
        "moved": _share(moved, (-2, -1)),
        "idle_rows": _share(~jnp.any(flips, axis=-2), (-1,)),
        "stuck_rows": _share(~jnp.any(moved, axis=-2), (-1,)),
        "dead_rows": _share(least == most, (-1,)),
        "clipped": _share(now.clipped, (-2, -1)),
        "change": _norm(w - w0, 1) / _norm(w0, 1),
        "change_l2": _norm(w - w0, 2) / _norm(w0, 2),
    }
    if now.drift is not None:
        figures["drift"] = jnp.exp(jnp.mean(jnp.log(now.drift), axis=(-2, -1)))
    return {name: figure.reshape(layers) for name, figure in figures.items()} | {
        "levels": _level_shares(now.codes, levels, layers)
    }


def _level_shares(codes: UInt8[Array, "*s k n"], levels: int, layers: int) -> Float[Array, "layers levels"]:
    shares = [_share(codes == jnp.uint8(code), (-2, -1)).reshape(layers) for code in range(levels)]
    return jnp.stack(shares, axis=-1)


def _levels(quantizer: Quantizer, layer: int) -> tuple[float, ...]:
    grid = quantizer.layer(layer).grid
    assert grid is not None
    return grid.levels


def _share(flags: Bool[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """Counted in whole numbers: the same on every mesh."""
    total = np.prod([flags.shape[axis] for axis in axes])
    return jnp.sum(flags, axis=axes, dtype=jnp.int32).astype(jnp.float32) / float(total)


def _norm(x: Float[Array, "*s k n"], order: int) -> Float[Array, "*s"]:
    if order == 1:
        return jnp.sum(jnp.abs(x), axis=(-2, -1))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
