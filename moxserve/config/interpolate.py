"""Environment variables in values.

    ${NAME}             the variable; a problem when it is not set
    ${NAME:-default}    the default when it is not set or empty; up to the next `}`
    $${                 a literal `${`

Anything else stays as it is, `$NAME` and a lone `$` included. An unquoted value takes its type after the replacement:
`batch_size: ${BATCH:-32}` is a number; a quoted one stays text. (Inside `{...}` YAML needs the quotes; numbers are read
from text where a number is expected.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from moxserve.config.tree import Node, Place, scalar
from moxserve.errors import ConfigProblem, did_you_mean

__all__ = ["InterpolationError", "interpolate", "interpolate_text"]

_PATTERN = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|\$\{")


class InterpolationError(ValueError):
    """A reference in a text cannot be filled in.

    Attributes:
        offset: where in the text it starts.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def interpolate_text(text: str, environment: Mapping[str, str]) -> str:
    """Fill in the references of one text.

    Raises:
        InterpolationError: a variable is not set and has no default, or a reference is malformed.
    """

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, default = match["name"], match["default"]
        if name is None:
            raise InterpolationError("expected ${NAME} or ${NAME:-default}; write $${ for a literal ${", match.start())
        value = environment.get(name, "")
        if value or (name in environment and default is None):
            return value
        if default is None:
            near = did_you_mean(name, environment) if environment else ""
            near = f"; {near}" if near.startswith("did you mean") else ""
            raise InterpolationError(
                f"environment variable {name} is not set and has no default{near} (a default is written "
                f"${{{name}:-value}})",
                match.start(),
            )
        return str(default[2:])

    return _PATTERN.sub(fill, text)


def interpolate(node: Node, environment: Mapping[str, str], problems: list[ConfigProblem], key: str = "") -> Node:
    """Fill in every text of a tree; keys stay as they are.

    Args:
        node: the tree.
        environment: the variables.
        problems: takes what is wrong; that value stays as it was.
        key: dotted key of the tree, for messages.

    Returns:
        A new tree.
    """
    if isinstance(node.value, dict):
        return replace(
            node,
            value={
                name: interpolate(child, environment, problems, f"{key}.{name}" if key else name)
                for name, child in node.value.items()
            },
        )
    if isinstance(node.value, list):
        items = [interpolate(c, environment, problems, f"{key}.{i}") for i, c in enumerate(node.value)]
        return replace(node, value=items)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    try:
        text = interpolate_text(node.value, environment)
    except InterpolationError as error:
        problems.append(_at(node, error.offset).problem(str(error), key))
        return node
    return replace(node, value=scalar(text) if node.plain else text, text=text)


def _at(node: Node, offset: int) -> Place:
    """Return the place of a character in a scalar, when it stands on the line where the scalar starts."""
    place = node.place
    column = place.column - 1 + offset + (0 if node.plain else 1)
    if place.column and place.source_line[column : column + 2] == "${":
        return replace(place, column=column + 1)
    return place
