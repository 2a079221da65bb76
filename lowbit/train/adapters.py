"""From the sections `quant` and `adapters` of a config to the rules of its model: which matrices have an adapter."""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.config import ConfigDict, base
from lowbit.errors import ConfigError, QuantizerError
from lowbit.numerics.quantizers import Quantizer, adapted
from lowbit.train.overrides import changes
from lowbit.train.quantization import EMBEDDING, FAMILY_PATHS, LINEAR_KERNELS, quantization_rules
from lowbit.tree.rules import Rule, assign, lookup

Rules = Sequence[Rule[Quantizer | None]]


def model_rules(config: ConfigDict) -> list[Rule]:
    """Returns the rules of a config's model: those of its section `quant`, with the adapters of its own section.

    Raises:
      LowbitError: as `quantization_rules` and `with_adapters`.
    """
    return with_adapters(quantization_rules(config.quant), config.adapters, config.seed)


def with_adapters(rules: Rules, adapters: ConfigDict, seed: int) -> list[Rule]:
    """Returns the rules with an adapter beside each quantizer that the section gives one.

    Its overrides, and then what it says of the layers' kernels, are rules over the paths of parameters. Each matrix
    that gets an adapter gets a rule of its own, as each starts from random numbers of its own.

    Args:
      rules: of `quantization_rules`.
      adapters: the section.
      seed: of the run.

    Raises:
      ConfigError: an override of another form or with an unknown key, a negative rank, a start without any rank,
        or an adapter for the embedding.
      QuantizerError: as `adapted`, naming the path.
      RuleError: a pattern that no parameter reaches.
    """
    found = _settings_by_path(adapters)
    if adapters.start != base().adapters.start and not any(found.values()):
        raise ConfigError(
            f"adapters.start={adapters.start!r} is set, and no matrix has an adapter",
            "set adapters.rank, or leave adapters.start out",
        )
    own: list[Rule] = []
    for path, settings in found.items():
        if settings is None:
            continue
        if path == EMBEDDING:
            raise ConfigError(
                "adapters.overrides gives the embedding an adapter, and rows are looked up, not multiplied",
                "let its pattern match kernels alone, such as layers/attn/.*/kernel",
            )
        quantizer = lookup(rules, path)
        assert quantizer is not None  # quantization_rules gives each parameter one
        try:
            beside = adapted(quantizer, **settings, seed=(seed ^ zlib.crc32(path.encode())) & 0x7FFF_FFFF)
        except QuantizerError as error:
            raise QuantizerError(f"{path}: {error.cause}", error.mend) from error
        own.append(Rule(re.escape(path), beside))
    # A rule whose parameters all have an adapter now is reached no longer, and would be taken for a mistake.
    before, after = (_reached(table) for table in (rules, [*own, *rules]))
    return [*own, *(rule for i, rule in enumerate(rules) if i not in before or i + len(own) in after)]


def _settings_by_path(adapters: ConfigDict) -> dict[str, dict[str, Any] | None]:
    """What `adapted` is told of each path of the family; None for no adapter."""
    common = adapters.to_dict()
    table: list[Rule[dict[str, Any] | None]] = []
    overrides = common.pop("overrides")
    for pattern, changed in changes(overrides, "adapters", common, '("layers/mlp/.*/kernel", {"rank": 8})'):
        table.append(Rule(pattern, _settings({**common, **changed})))
    left = [path for path in FAMILY_PATHS if lookup([*(Rule(r.pattern, False) for r in table), Rule(".*", True)], path)]
    usual: Rule[dict[str, Any] | None] = Rule(LINEAR_KERNELS, _settings(common))
    if any(re.fullmatch(LINEAR_KERNELS, path) for path in left):
        table.append(usual)
    return assign([*table, Rule(".*", None)], FAMILY_PATHS)


def _settings(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    for key, value in settings.items():
        kind = float if key == "alpha" else str if key == "start" else int
        if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
            raise ConfigError(f"adapters.{key}={value!r}", f"give a {kind.__name__}")
    if settings["rank"] < 0:
        raise ConfigError(f"adapters.rank={settings['rank']}", "give a rank of at least 1, or 0 for no adapter")
    return dict(settings) if settings["rank"] else None


def _reached(rules: Rules) -> set[int]:
    """Which of the rules some parameter of the family reaches."""
    numbered = [Rule(rule.pattern, i) for i, rule in enumerate(rules)]
    return {lookup(numbered, path) for path in FAMILY_PATHS}
