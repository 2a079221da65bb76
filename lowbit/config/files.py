"""Config files, variants of a file, and overrides from the command line."""

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from lowbit.config.keys import leaves, node_at
from lowbit.config.schema import ELEMENTS, base
from lowbit.config.values import parse, with_article
from lowbit.errors import ConfigError, LowbitError, nearest

T = TypeVar("T")


def load(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Returns the locked config that `path/to/file.py[:variants]` and overrides describe.

    Args:
      spec: a Python file that defines `get_config(arg: str)`, and after a colon what to pass it.
      overrides: `a.b=value`, with or without `--config.` in front, applied in order.

    Raises:
      ConfigError: no such file or key or variant, a value of another type, or a file that fails.
    """
    path_text, _, argument = spec.partition(":")
    execute = python_file(path_text, "config", "give the path of a config file, such as configs/x.py")
    try:
        config = execute().get_config(argument)
    except LowbitError:
        raise
    except Exception as error:  # the file is the user's own code: whatever it raises is a mistake in it
        raise _explained(path_text, error) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config of {path_text!r} returns {with_article(type(config).__name__)}", "return base(), with changes"
        )
    _check_keys(config, path_text)
    override(config, overrides)
    return config.lock()


def python_file(path_text: str, kind: str, mend: str) -> Callable[[], ModuleType]:
    """Returns what executes a user's Python file and returns its module; that may raise anything.

    Args:
      path_text: as the user gave it.
      kind: what the file is to an error: "config".
      mend: what to do where there is no such file, nor any other beside it.

    Raises:
      ConfigError: no such file, or no Python file.
    """
    path = Path(path_text)
    if not path.is_file():
        siblings = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise ConfigError(
            f"{kind} file {path_text!r} does not exist", nearest(path_text, siblings) if siblings else mend
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{kind} file {path_text!r} is not a Python file", "name it something.py")
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def execute() -> ModuleType:
        loader.exec_module(module)
        return module

    return execute


def variants(argument: str, **defaults: Any) -> ConfigDict:
    """Returns the variants that follow a config's colon, each of its default's type: `bits=2,smoke`.

    A boolean may stand alone for `=true`.

    Raises:
      ConfigError: an unknown variant, or a value of another type.
    """
    chosen = ConfigDict(defaults).lock()
    for part in filter(None, (piece.strip() for piece in argument.split(","))):
        name, equals, text = part.partition("=")
        if name not in defaults:
            raise ConfigError(f"unknown config variant {name!r}", nearest(name, defaults))
        if not equals and not isinstance(defaults[name], bool):
            raise ConfigError(f"config variant {name!r} has no value", f"write {name}={defaults[name]}")
        chosen[name] = parse(text if equals else "true", type(defaults[name]), f"variant {name}")
    return chosen


def choose(name: str, value: Any, table: Mapping[Any, T]) -> T:
    """Returns table[value]; raises ConfigError that names the nearest key."""
    if value not in table:
        raise ConfigError(
            f"no {name} {value:g}" if isinstance(value, float) else f"no {name} {value!r}",
            nearest(f"{value:g}" if isinstance(value, float) else str(value), map(str, table)),
        )
    return table[value]


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Applies `a.b=value` (or `--config.a.b=value`) to a config in place.

    Raises:
      ConfigError: no `=`, an unknown key, a key that is a section, or a value of another type.
    """
    for assignment in assignments:
        key, equals, text = assignment.removeprefix("--").removeprefix("config.").partition("=")
        if not equals:
            raise ConfigError(f"override {assignment!r} sets nothing", "write --config.section.key=value")
        known = dict(leaves(config))
        if key not in known:
            section = isinstance(node_at(config, key), ConfigDict)
            inside = [name for name in known if name.startswith(key + ".")] if section else list(known)
            cause = f"config key {key!r} is a section" if section else f"unknown config key {key!r}"
            raise ConfigError(cause, nearest(key, inside))
        *sections, last = key.split(".")
        place = config
        for section_name in sections:
            place = place[section_name]
        place[last] = parse(text, place.get_type(last), f"config key {key}", ELEMENTS.get(key, str))


def _check_keys(config: ConfigDict, place: str) -> None:
    own, known = dict(leaves(config)), dict(leaves(base()))
    unknown, missing = sorted(own.keys() - known.keys()), sorted(known.keys() - own.keys())
    if unknown:
        raise ConfigError(f"{place} sets an unknown key {unknown[0]!r}", nearest(unknown[0], known))
    if missing:
        raise ConfigError(f"{place} leaves out the key {missing[0]!r}", "start from base() and change what differs")


def _explained(path: str, error: Exception) -> ConfigError:
    misspelt = re.search(r'Key "(\w+)" does not exist|instead of "(\w+)"', str(error))
    if misspelt:
        name = misspelt[1] or misspelt[2]
        names = {part for key, _ in leaves(base()) for part in key.split(".")}
        return ConfigError(f"{path} sets an unknown key {name!r}", nearest(name, names))
    if "get_config" in str(error):
        return ConfigError(f"{path} defines no get_config(arg)", "define get_config(arg: str) -> ConfigDict in it")
    return ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}", "mend the config file")
