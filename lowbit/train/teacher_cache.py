"""Writing a teacher's cache for a config, and reading it in place of the teacher."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.data import TokenDataset
from lowbit.distill.buckets import Kept, Truncation, keep
from lowbit.distill.cache import Identity, Shard, TeacherCache, write_cache
from lowbit.distill.cached import TaughtDataset, check_needs_no_teacher
from lowbit.errors import ConfigError
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer
from lowbit.models.chunks import cut, join, rows
from lowbit.train.teacher import Teacher, make_mix


class Lesson(NamedTuple):
    """What it takes to write a cache.

    Attributes:
      identity: what the cache is of.
      windows: numbers of the windows that the config's run reads, ascending.
      train: the run's data.
      model: the teacher's module.
      params: its parameters.
      chunks: pieces of a sequence whose logits are in memory at once.
    """

    identity: Identity
    windows: NDArray[np.int64]
    train: TokenDataset
    model: Transformer
    params: dict
    chunks: int


def read_windows(config: ConfigDict, train: TokenDataset) -> NDArray[np.int64]:
    """Returns the numbers of all windows that a config's run reads, ascending, on all processes together."""
    seen = np.zeros(len(train.windows), bool)
    for step in range(configs.steps(config)):
        seen[train.indices(step)] = True
    return np.flatnonzero(seen)


def identity_of(
    config: ConfigDict, teacher: Teacher, cfg: LlamaConfig, train: TokenDataset, separator: int | None, k: int
) -> Identity:
    """Returns what a cache must be of to serve a run.

    Args:
      config: of the run.
      teacher: its teacher.
      cfg: sizes of the student.
      train: what it reads.
      separator: token between documents that are kept apart.
      k: tokens to keep at each position.
    """
    return Identity(
        teacher=teacher.fingerprint,
        text=train.windows.fingerprint(),
        length=config.train.sequence_length,
        vocab_size=cfg.vocab_size,
        k=k,
        temperature=config.distill.temperature,
        separator=separator,
    )


def open_cache(
    config: ConfigDict, teacher: Teacher, cfg: LlamaConfig, train: TokenDataset, separator: int | None
) -> TaughtDataset:
    """Returns the data of a run with what the cache at `distill.cache` says of it.

    Raises:
      DataError: no cache, a damaged one, or one of another teacher, text or vocabulary, or without the run's windows.
    """
    cache = TeacherCache.open(Path(config.distill.cache).expanduser(), verify=True)
    wanted = identity_of(config, teacher, cfg, train, separator, cache.identity.k)
    cache.check(wanted, read_windows(config, train))
    return TaughtDataset(
        train.windows,
        train.batch_size,
        train.seed,
        train.subset,
        train.process_index,
        train.process_count,
        cache=cache,
    )


def write_lessons(lesson: Lesson, folder: Path, windows_per_shard: int) -> Iterator[Shard]:
    """Runs the teacher over the windows that are not in the folder yet, and yields each shard; `write_cache` says how.

    Raises:
      DataError: the folder holds something else, or cannot be written.
    """
    return write_cache(folder, lesson.identity, lesson.windows, windows_per_shard, _teach(lesson))


def check_cacheable(config: ConfigDict) -> None:
    """Raises ConfigError for a config that learns from no teacher's logits, from more, or from a cache already."""
    if not config.distill.weight:
        raise ConfigError("distill.weight=0: the run learns from no teacher's logits", "set --config.distill.weight")
    if config.distill.cache:
        raise ConfigError(f"distill.cache={config.distill.cache} is what the run reads", "leave it out")
    if config.coreset.share != 1.0:
        raise ConfigError(
            f"coreset.share={config.coreset.share:g}: which windows the run reads is seen when it runs",
            "leave coreset.share out",
        )
    check_needs_no_teacher(make_mix(config))


def _teach(
    lesson: Lesson,
) -> Callable[[NDArray[np.int64]], tuple[np.ndarray, np.ndarray, np.ndarray, float, float]]:
    batch = lesson.train.batch_size
    identity = lesson.identity
    params = jax.device_put(lesson.params)

    @jax.jit
    def top(params: dict, tokens: jax.Array) -> tuple[Kept, Truncation]:
        outputs: Any = lesson.model.apply({"params": params}, tokens, method="hidden_and_head")
        hidden, head = outputs

        def turn(states: jax.Array) -> tuple[Kept, Truncation]:
            logits = jnp.matmul(rows(states), head, preferred_element_type=jnp.float32)
            found = keep(logits, identity.k, identity.temperature)
            return jax.tree.map(lambda x: x.reshape(*states.shape[:2], *x.shape[1:]), found)

        return jax.tree.map(join, jax.lax.map(turn, cut(hidden, lesson.chunks)))

    def teach(windows: NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        parts = []
        for start in range(0, len(windows), batch):
            own = windows[start : start + batch]
            # Always a whole batch: one shape, one program.
            padded = np.fromiter(itertools.islice(itertools.cycle(own), batch), np.int64)
            found = jax.device_get(top(params, jnp.asarray(lesson.train.windows[padded][:, :-1])))
            parts.append(jax.tree.map(functools.partial(_first, len(own)), found))
        (ids, log_probs, tail), lost = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return ids, log_probs, tail, float(np.mean(lost.tail_mass)), float(np.mean(lost.tail_information))

    return teach


def _first(count: int, x: np.ndarray) -> np.ndarray:
    return x[:count]
