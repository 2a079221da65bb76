"""The zero-shot tasks by name: how each reads its rows, and what it is measured in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.errors import ConfigError, nearest
from lowbit.evals.tasks import rows
from lowbit.evals.tasks.item import Item

ACCURACY, PER_CHARACTER, PER_BYTE, PERPLEXITY = "acc", "acc_norm", "acc_bytes", "perplexity"
"""Names of metrics, as in lm-evaluation-harness. `lowbit.evals.tasks.accuracy` says what they mean."""


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      name: as in the harness.
      read: a row of its data set -> item.
      metrics: what is reported, the one to quote first.
      choices: whether the likeliest choice is asked for; otherwise whether the only one is what greedy decoding gives.
    """

    name: str
    read: Callable[[Mapping[str, Any]], Item]
    metrics: tuple[str, ...]
    choices: bool = True


_BOTH = (ACCURACY, PER_CHARACTER, PER_BYTE)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("arc_easy", rows.arc, _BOTH),
        Task("arc_challenge", rows.arc, _BOTH),
        Task("boolq", rows.boolq, (ACCURACY,)),
        Task("piqa", rows.piqa, _BOTH),
        Task("social_iqa", rows.social_iqa, (ACCURACY,)),
        Task("hellaswag", rows.hellaswag, _BOTH),
        Task("openbookqa", rows.openbookqa, _BOTH),
        Task("winogrande", rows.winogrande, (ACCURACY,)),
        Task("lambada_openai", rows.lambada, (ACCURACY, PERPLEXITY), choices=False),
    )
}


def task(name: str) -> Task:
    """Returns a task by its name.

    Raises:
      ConfigError: there is none of this name.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}", nearest(name, TASKS))
    return TASKS[name]
