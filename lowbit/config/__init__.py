"""Configs: one schema, files that fill it in, variants of a file, and overrides from the command line.

    configs/qat_smollm2.py:bits=2,smoke --config.optimizer.learning_rate=1e-3

names a file, two variants that its `get_config` takes, and one override. The result is a locked
`ml_collections.ConfigDict` with exactly the keys of `base()`: whatever is misspelt anywhere is a `ConfigError`.
"""

from ml_collections import ConfigDict

from lowbit.config.files import choose, load, override, variants
from lowbit.config.records import differences, from_json, to_json
from lowbit.config.schema import ELEMENTS, base, shrink, steps
from lowbit.config.values import parse

__all__ = [
    "ELEMENTS",
    "ConfigDict",
    "base",
    "choose",
    "differences",
    "from_json",
    "load",
    "override",
    "parse",
    "shrink",
    "steps",
    "to_json",
    "variants",
]
