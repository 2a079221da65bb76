"""What a config's numbers may be, checked together before any work."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lowbit.config import ELEMENTS, ConfigDict
from lowbit.errors import ConfigError

INF = float("inf")


class Limit(NamedTuple):
    """A range in words, and whether a value lies in it; a NaN lies in none."""

    words: str
    holds: Callable[[Any], bool]


SEED = Limit("an integer from 0 to 2**31 - 1", lambda x: 0 <= x < 2**31)
COUNT = Limit("at least 1", lambda x: x >= 1)
COUNT_OR_NONE = Limit("at least 0", lambda x: x >= 0)
POSITIVE = Limit("a finite number above 0", lambda x: 0 < x < INF)
POSITIVE_OR_INF = Limit("a number above 0, or inf", lambda x: x > 0)
NOT_NEGATIVE = Limit("a finite number, at least 0", lambda x: 0 <= x < INF)
SHARE = Limit("a number from 0 to 1", lambda x: 0 <= x <= 1)
SOME = Limit("a number above 0, to 1", lambda x: 0 < x <= 1)
DECAY = Limit("a number in [0, 1)", lambda x: 0 <= x < 1)

LIMITS = {
    "seed": SEED,
    "model.architecture.rope_theta": POSITIVE,
    "model.architecture.rms_norm_eps": POSITIVE,
    "activations.calibration": COUNT,
    "coreset.share": SOME,
    "coreset.every_steps": COUNT_OR_NONE,
    "distill.weight": SHARE,
    "distill.temperature": POSITIVE,
    "distill.hidden_weight": NOT_NEGATIVE,
    "distill.attention_weight": NOT_NEGATIVE,
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.eps": POSITIVE,
    "optimizer.momentum": DECAY,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.scale_learning_rate": NOT_NEGATIVE,
    "optimizer.float_learning_rate": NOT_NEGATIVE,
    "optimizer.scale_until": SHARE,
    "optimizer.clip_norm": POSITIVE_OR_INF,
    "optimizer.channel_share": SOME,
    "optimizer.channel_every_steps": COUNT,
    "train.batch_size": COUNT,
    "train.sequence_length": COUNT,
    "train.accumulate": COUNT,
    "train.loss_chunks": COUNT,
    "evaluation.every_steps": COUNT_OR_NONE,
    "evaluation.windows": COUNT_OR_NONE,
    "evaluation.batch_size": COUNT,
    "checkpoint.every_steps": COUNT_OR_NONE,
    "checkpoint.every_minutes": POSITIVE_OR_INF,
    "checkpoint.keep": COUNT,
    "log.every_steps": COUNT,
    "log.recorder_every_steps": COUNT_OR_NONE,
}
"""By key. What depends on other parts (shares of a schedule, the mesh, widths) is checked where these are made."""


def check_limits(config: ConfigDict) -> None:
    """Raises ConfigError for the first number or tuple that is out of its range, naming both."""
    for key, limit in LIMITS.items():
        if not limit.holds(_at(config, key)):
            raise ConfigError(f"{key}={_at(config, key)}", f"give {limit.words}")
    for key, kind in ELEMENTS.items():
        for element in _at(config, key):
            kinds = {float: (int, float), tuple: (tuple, list)}.get(kind, (kind,))
            if not isinstance(element, kinds) or isinstance(element, bool):
                raise ConfigError(f"{key} holds {element!r}", f"give a tuple of nothing but {kind.__name__} values")
    if config.train.sequence_length % config.train.loss_chunks:
        raise ConfigError(
            f"train.loss_chunks={config.train.loss_chunks} does not divide "
            f"train.sequence_length={config.train.sequence_length}",
            "choose a divisor",
        )


def _at(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value
