"""Nested dicts as flat ones with slash-separated paths, and back."""

from collections.abc import Mapping
from typing import Any

Tree = Mapping[str, Any]
"""A nested dict of parameters or their state, as Flax keeps them."""


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Returns `{"a/b/c": leaf}`; anything but a mapping is a leaf, and empty mappings vanish."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def get(tree: Tree, path: str) -> Any:
    """The node at a path, or None where there is none."""
    node: Any = tree
    for key in path.split("/"):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node
