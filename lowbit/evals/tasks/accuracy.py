"""How often a model finds the right choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowbit.data import TextTokenizer
from lowbit.errors import DataError
from lowbit.evals.encoding import encode_pairs
from lowbit.evals.scoring import Likelihood, Scorer
from lowbit.evals.tasks.item import Item
from lowbit.evals.tasks.task import ACCURACY, PER_BYTE, PER_CHARACTER, PERPLEXITY, Task


@dataclass(frozen=True)
class Metric:
    """A figure and its standard error over items; None for a single item."""

    value: float
    stderr: float | None


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class TaskResult:
    """A model on a task.

    Attributes:
      task: its name.
      metrics: by name, see `evaluate_task`.
      samples: what each metric is the mean of, f64[items]: 1 for right and 0 for wrong, or nats.
      log_likelihoods: of every choice of each item.
    """

    task: str
    metrics: Mapping[str, Metric]
    samples: Mapping[str, NDArray[np.float64]]
    log_likelihoods: tuple[tuple[float, ...], ...]


def evaluate_task(
    scorer: Scorer, tokenizer: TextTokenizer, prefix: int, task: Task, items: Sequence[Item]
) -> TaskResult:
    """Scores every choice of every item.

    The metrics are lm-evaluation-harness's: `acc` takes the likeliest choice, `acc_norm` the likeliest per character,
    `acc_bytes` per UTF-8 byte (of the choice without the space in front), the first of equal ones. For the word that
    LAMBADA asks for, `acc` is whether greedy decoding gives it, and `perplexity` is exp(mean nats of the word), with
    standard error by the delta method.

    Args:
      scorer: the model.
      tokenizer: its tokenizer.
      prefix: token in place of an empty context (`encoding.first_token`).
      task: which metrics, and what for.
      items: at least one.

    Raises:
      DataError: no items, one choice where there must be several or the other way round, or an item without tokens.
    """
    if not items:
        raise DataError(f"no items of {task.name}", "give at least one")
    for item in items:
        if (len(item.choices) > 1) != task.choices:
            raise DataError(
                f"an item of {task.name} with {len(item.choices)} choices: {item.contexts[0][:60]!r}",
                "give several, one of them right" if task.choices else "give one, the word that is asked for",
            )
    requests = encode_pairs(tokenizer, [pair for item in items for pair in item.pairs()], prefix)
    flat = iter(scorer.log_likelihoods(requests))
    found = [[next(flat) for _ in item.choices] for item in items]
    samples = {name: _samples(name, task, items, found) for name in task.metrics}
    return TaskResult(
        task.name,
        {name: _metric(name, values) for name, values in samples.items()},
        samples,
        tuple(tuple(choice.log_likelihood for choice in choices) for choices in found),
    )


def _samples(
    name: str, task: Task, items: Sequence[Item], found: Sequence[Sequence[Likelihood]]
) -> NDArray[np.float64]:
    if name == PERPLEXITY:
        return np.array([-choices[0].log_likelihood for choices in found])
    if not task.choices:
        return np.array([float(choices[0].greedy) for choices in found])
    picked = [
        int(np.argmax([choice.log_likelihood for choice in choices] / _lengths(name, item)))
        for item, choices in zip(items, found, strict=True)
    ]
    return np.array([float(pick == item.gold) for pick, item in zip(picked, items, strict=True)])


def _lengths(name: str, item: Item) -> NDArray[np.float64]:
    count = {ACCURACY: lambda _: 1, PER_CHARACTER: len, PER_BYTE: lambda choice: len(choice.encode())}[name]
    return np.array([float(count(choice)) for choice in item.choices])


def _metric(name: str, values: NDArray[np.float64]) -> Metric:
    mean = float(values.mean())
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    if name == PERPLEXITY:
        perplexity = math.exp(mean) if mean < 700 else math.inf  # float64 ends at exp(709.8)
        return Metric(perplexity, None if stderr is None else perplexity * stderr)
    return Metric(mean, stderr)
