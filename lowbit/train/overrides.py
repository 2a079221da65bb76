"""The overrides of a config's section: settings of some parameters, by patterns over their paths."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lowbit.errors import ConfigError, nearest


def changes(
    entries: Iterable[Any], section: str, common: Mapping[str, Any], example: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each entry, a pair of a pattern and the settings that it changes.

    Args:
      entries: of the section's `overrides`.
      section: its name, for errors.
      common: settings of what no pattern matches.
      example: of an entry, for errors.

    Raises:
      ConfigError: an entry of another form, or with an unknown key.
    """
    for entry in entries:
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)):
            raise ConfigError(f"{section}.overrides holds {entry!r}", f"give pairs such as {example}")
        pattern, changed = entry
        for key in changed:
            if key not in common:
                raise ConfigError(f"{section}.overrides sets an unknown key {key!r}", nearest(key, common))
        yield str(pattern), dict(changed)
