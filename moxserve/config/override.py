"""`--set a.b=value`: one value replaced or added from the command line.

The key is dotted, a list's entry is its number. The value is YAML: `--set run.max_number_of_steps=50`,
`--set export.warmup=[1,8]`, `--set 'export={tf_serving: models/x}'`, `--set predict=null` (drops the stage). Mappings
on the way are made when they are missing.
"""

from __future__ import annotations

from dataclasses import replace

from moxserve.config.tree import Node, Place, format_value, parse
from moxserve.errors import ConfigError, ConfigProblem

__all__ = ["apply_overrides"]


def apply_overrides(root: Node, overrides: tuple[str, ...], problems: list[ConfigProblem]) -> Node:
    """Apply overrides in order.

    Args:
        root: a mapping.
        overrides: texts of the form `KEY=VALUE`.
        problems: takes what is wrong; that override is left out.

    Returns:
        A new tree; the new values' places name the override.
    """
    for text in overrides:
        place = Place(f"--set {text}")
        key, equals, value = text.partition("=")
        keys = key.strip().split(".")
        if not equals or not all(keys):
            problems.append(place.problem("expected KEY=VALUE, such as run.max_number_of_steps=50"))
            continue
        try:
            node = _placed(parse(value, place.path), place)
        except ConfigError as error:
            problems += [place.problem(p.message, key) for p in error.problems]
            continue
        try:
            root = _put(root, keys, node, place, "")
        except ValueError as error:
            problems.append(place.problem(str(error), key.strip()))
    return root


def _placed(node: Node, place: Place) -> Node:
    """Give a whole tree one place."""
    value = node.value
    if isinstance(value, dict):
        value = {name: _placed(child, place) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_placed(child, place) for child in value]
    return replace(node, value=value, place=place, key_place=place)


def _put(node: Node, keys: list[str], new: Node, place: Place, path: str) -> Node:
    if not keys:
        return new
    head, rest = keys[0], keys[1:]
    here = f"{path}.{head}" if path else head
    if isinstance(node.value, dict) or node.value is None:
        children = dict(node.value or {})
        child = children.get(head, Node(None, place, place))
        children[head] = _put(child, rest, new, place, here)
        return replace(node, value=children)
    if isinstance(node.value, list):
        items = list(node.value)
        if not head.isdecimal() or int(head) >= len(items):
            raise ValueError(f"{path} is a list of {len(items)}; expected an index below that, got {head!r}")
        items[int(head)] = _put(items[int(head)], rest, new, place, here)
        return replace(node, value=items)
    raise ValueError(f"{path} is {format_value(node.value)}, no mapping; nothing can be set below it")
