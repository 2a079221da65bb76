"""Which windows a quantized model learns most from: Adaptive Coreset Selection (arXiv 2306.07215), per sequence.

The paper scores images by distributions over classes; here every token is one, and a sequence has the mean over its
tokens. With p the student's distribution of the next token, q the teacher's and y the token that came:

    error (d_EVS)         |softmax - onehot|_2  of p and y
    disagreement (d_DS)   |p - q|_2
    mixed (d_ACS)         b d_EVS + (1 - b) d_DS,  b = cos(pi/2 * step / steps)
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Float32, Int32
from numpy.typing import NDArray

from lowbit import config as configs
from lowbit.config import ConfigDict, base, choose
from lowbit.data import TokenDataset
from lowbit.data.coreset import CoresetDataset
from lowbit.distill.losses import Outputs
from lowbit.distill.objectives import TEACHER
from lowbit.errors import ConfigError
from lowbit.models import Transformer
from lowbit.models.chunks import cut, join, rows
from lowbit.models.placement import on_mesh
from lowbit.train import processes, sharding
from lowbit.train.state import TrainState, Tree
from lowbit.train.teacher import asks_for_teacher

Scorer = Callable[[Tree, jax.Array], jax.Array]
"""scorer(variables, batch i32[b t+1]) -> f32[b 2], as `sequence_scores`."""

FOLDER = "coresets"
"""Of a run's folder: what it chose."""

NEEDS_TEACHER = {"error": False, "disagreement": True, "mixed": True, "random": False}
"""By the name of a score; "random" is what the others are to be compared with."""


def check_coreset(config: ConfigDict) -> None:
    """Refuses a section `coreset` that cannot be, before anything is loaded.

    Raises:
      ConfigError: an unknown score, one that needs a teacher where none runs, a teacher's cache, whose windows are
        chosen before the run, or settings of a coreset where all windows are read.
    """
    settings = config.coreset
    needs_teacher = choose("coreset.score", settings.score, NEEDS_TEACHER)
    if settings.share == 1.0:
        for key in ("score", "every_steps"):
            if settings[key] != base().coreset[key]:
                raise ConfigError(
                    f"coreset.{key}={settings[key]!r} is set, and all windows are read",
                    f"set coreset.share, or leave coreset.{key} out",
                )
        return
    if config.distill.cache:
        raise ConfigError(
            "a teacher's cache holds the windows that a run will read, and a coreset chooses them on the way",
            "leave distill.cache out, or coreset.share",
        )
    if needs_teacher and not asks_for_teacher(config):
        raise ConfigError(
            f"coreset.score={settings.score!r} compares with a teacher, and the run has none",
            "set distill.weight, or coreset.score=error",
        )


def with_coreset(config: ConfigDict, train: TokenDataset) -> TokenDataset:
    """Returns the data of a run: as it is, or the part of it that the section `coreset` asks for."""
    settings = config.coreset
    if settings.share == 1.0:
        return train
    chosen = max(1, round(settings.share * len(train.windows)))
    rule = f"{settings.score} over {configs.steps(config)} steps"
    fields = {field.name: getattr(train, field.name) for field in dataclasses.fields(TokenDataset)}
    return CoresetDataset(
        **fields,
        folder=Path(config.run_folder).expanduser() / FOLDER,
        chosen=chosen,
        every=settings.every_steps or -(-chosen // train.batch_size),
        rule=rule,
    )


def sequence_scores(
    student: Outputs, teacher: Outputs | None, targets: Int32[Array, "b t"], chunks: int
) -> Float32[Array, "b 2"]:
    """Returns d_EVS and d_DS of each sequence, means over its tokens; d_DS is 0 without a teacher.

    Args:
      student: its hidden states and head.
      teacher: the teacher's; its width may differ, its vocabulary not.
      targets: the tokens that came.
      chunks: pieces of a sequence whose logits are in memory at once; it must divide t.
    """

    def distribution(hidden: Float[Array, "b t d"], head: Float[Array, "d V"]) -> Float32[Array, "b t V"]:
        logits = jnp.matmul(rows(hidden), head, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits).reshape(*hidden.shape[:2], -1)

    def turn(piece: tuple[jax.Array, jax.Array, jax.Array]) -> Float32[Array, "b t 2"]:
        ours, wise, ids = piece
        p = distribution(ours, student.head)
        error = jnp.linalg.norm(p - jax.nn.one_hot(ids, p.shape[-1], dtype=jnp.float32), axis=-1)
        if teacher is None:
            return jnp.stack([error, jnp.zeros_like(error)], axis=-1)
        return jnp.stack([error, jnp.linalg.norm(p - distribution(wise, teacher.head), axis=-1)], axis=-1)

    hidden = student.hidden if teacher is None else teacher.hidden
    pieces = cut(student.hidden, chunks), cut(hidden, chunks), cut(targets, chunks)
    return jnp.mean(join(jax.lax.map(turn, pieces)), axis=1)


def combined(score: str, scores: NDArray[np.float32], step: int, steps: int, seed: int) -> NDArray[np.float64]:
    """Returns by what windows are chosen after `step` of `steps` steps, `[n]`, from `[n 2]` of `sequence_scores`."""
    if score == "random":
        return np.random.default_rng([seed, step]).random(len(scores))
    mix = {"error": 1.0, "disagreement": 0.0, "mixed": math.cos(math.pi / 2 * step / steps)}[score]
    errors, disagreements = scores.astype(np.float64).T
    return mix * errors + (1.0 - mix) * disagreements


def make_scorer(config: ConfigDict, student: Transformer, teacher: Transformer | None) -> Scorer:
    """Returns what scores the sequences of a batch.

    Args:
      config: of the run.
      student: its model.
      teacher: the teacher's, whose parameters are `variables[TEACHER]`; None where none runs.
    """
    wise = teacher if NEEDS_TEACHER[config.coreset.score] else None

    def scorer(variables: Tree, batch: Int32[Array, "b length"]) -> Float32[Array, "b 2"]:
        own = {name: tree for name, tree in variables.items() if name != TEACHER}
        inputs, targets = batch[:, :-1], batch[:, 1:]
        taught = None if wise is None else _outputs(wise, {"params": variables[TEACHER]}, inputs)
        return sequence_scores(_outputs(student, own, inputs), taught, targets, config.train.loss_chunks)

    return scorer


def _outputs(model: Transformer, variables: Tree, tokens: jax.Array) -> Outputs:
    outputs: Any = model.apply(variables, tokens, method="hidden_and_head")
    return Outputs(*outputs)


class Chooser:
    """Chooses the windows of each period of a run, on all of its processes together.

    Args:
      config: of the run.
      data: what it reads.
      scorer: of `make_scorer`.
      shardings: of the run's state.
      mesh: the devices.
    """

    def __init__(
        self, config: ConfigDict, data: CoresetDataset, scorer: Scorer, shardings: TrainState, mesh: jax.sharding.Mesh
    ):
        self._config, self._data = config, data
        self._rows = NamedSharding(mesh, sharding.BATCH)
        # Looked for once, before any process can have made another: all of them have to choose, or none.
        self._there = {place.name for place in data.folder.glob("*.npy")}

        def scores(state: TrainState, batch: jax.Array) -> jax.Array:
            return scorer(state.variables, batch)

        self._scores = jax.jit(
            on_mesh(mesh, scores),
            in_shardings=(shardings, self._rows),
            out_shardings=NamedSharding(mesh, sharding.REPLICATED),
        )

    def is_due(self, step: int) -> bool:
        """Whether windows are to be chosen after `step` steps."""
        place = self._data.place(step)
        return step % self._data.every == 0 and place.name not in self._there

    def choose(self, state: TrainState, step: int) -> None:
        """Scores all windows with the state after `step` steps, and writes down the choice for the next ones."""
        settings = self._config.coreset
        scores = np.zeros((len(self._data.windows), 2), np.float32)
        if settings.score != "random":
            scores = self._all_scores(state)
        by = combined(settings.score, scores, step, configs.steps(self._config), self._config.seed)
        if processes.is_first():
            self._data.choose(step, by)
        processes.wait_for_all(f"windows chosen after step {step}")

    def _all_scores(self, state: TrainState) -> NDArray[np.float32]:
        """Of every window, `[n 2]`, a batch of evaluation at a time."""
        windows, size = self._data.windows, self._config.evaluation.batch_size
        started = []
        for first in range(0, len(windows), size):
            # The last batch begins anew where it ends: one shape, one program.
            numbers = np.arange(first, first + size) % len(windows)
            started.append(self._scores(state, sharding.put_whole(windows[numbers], self._rows)))
        return np.concatenate([np.asarray(each) for each in started])[: len(windows)]
