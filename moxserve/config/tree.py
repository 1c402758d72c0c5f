"""YAML as a tree of nodes that know their place in the file. Safe: no tag runs code, no key may appear twice.

Scalars follow YAML 1.2's core schema, as people expect today: only `true` and `false` are booleans (`no` and `on` are
text), `1e-3` is a number, `12:30` and `2024-01-01` are text, octal is `0o17`. Anchors, aliases and `<<` merges work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from moxserve.errors import ConfigError, ConfigProblem

__all__ = ["Node", "Place", "format_value", "parse", "scalar"]

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written.

    Attributes:
        path: the file, or the text of a `--set` option.
        line: 1-based; 0 when there is none.
        column: 1-based; 0 when there is none.
        source_line: the text of that line.
    """

    path: str
    line: int = 0
    column: int = 0
    source_line: str = ""

    def problem(self, message: str, key: str = "") -> ConfigProblem:
        """Make a problem at this place."""
        return ConfigProblem(message, self.path, self.line, self.column, key, self.source_line)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place.

    Attributes:
        value: None, bool, int, float or str; a dict of nodes; a list of nodes.
        place: where the value starts.
        key_place: where its key starts, when it has one.
        text: a scalar as written, without quotes.
        plain: a scalar without quotes, so that its type follows from its text.
    """

    value: Any
    place: Place
    key_place: Place | None = None
    text: str = ""
    plain: bool = False

    def data(self) -> Any:
        """Return plain Python data."""
        if isinstance(self.value, dict):
            return {key: node.data() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.data() for node in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """Return the node below this one; None when there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            found: Node = self.value[key]
            return found
        return None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name


_DIGITS = list("-+0123456789")
for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", _DIGITS),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", [*_DIGITS, "."]),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


def scalar(text: str) -> bool | int | float | str | None:
    """Give an unquoted scalar its type: `true`, `3`, `1e-3`, `null`; anything else is text."""
    tag = str(_Loader("").resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]
    try:
        return _convert(tag, text)
    except ValueError:  # a number of more digits than Python reads
        return text


def _convert(tag: str, text: str) -> bool | int | float | str | None:
    kind = tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        sign = -1 if text.startswith("-") else 1
        digits = text.lstrip("+-")
        base = {"0x": 16, "0o": 8}.get(digits[:2].lower(), 10)
        return sign * int(digits[2:] if base != 10 else digits, base)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def format_value(value: Any, limit: int = 60) -> str:
    """Write a value as YAML would, on one line: text in quotes, `true`, `null`; long ones cut."""
    if isinstance(value, str):
        text = "'" + value.replace("\n", "\\n").replace("'", "''") + "'"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {format_value(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, Sequence):
        text = "[" + ", ".join(format_value(v) for v in value) + "]"
    elif value is None:
        text = "null"
    else:
        text = repr(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse(text: str, path: str) -> Node:
    """Read one YAML document.

    Args:
        text: the document.
        path: its name in messages.

    Raises:
        ConfigError: not YAML, or a duplicate key, a forbidden tag, a key that is no text; all at once.
    """
    reader = _Reader(text, path)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([reader.syntax_problem(error)]) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError([reader.character_problem(error)]) from None
    except RecursionError:
        raise ConfigError([Place(path).problem("values are nested too deeply")]) from None
    node = reader.convert(root, ()) if root is not None else Node(None, Place(path, 1, 1))
    if reader.problems:
        raise ConfigError(reader.problems)
    return node


class _Reader:
    """Turns PyYAML's nodes into ours and collects what is wrong with them."""

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._lines = text.splitlines()
        self.problems: list[ConfigProblem] = []

    def place(self, mark: Any) -> Place:
        line = self._lines[mark.line] if mark.line < len(self._lines) else ""
        return Place(self._path, mark.line + 1, mark.column + 1, line.replace("\t", " "))

    def syntax_problem(self, error: yaml.MarkedYAMLError) -> ConfigProblem:
        mark = error.problem_mark or error.context_mark
        what = error.problem or "cannot be read"
        if mark is None:
            return Place(self._path).problem(f"not YAML: {what}")
        line = self._lines[mark.line] if mark.line < len(self._lines) else ""
        if "\\t" in what or line[: mark.column + 1].endswith("\t"):
            what = "a tab stands where YAML allows only spaces"
        elif error.context:
            since = f" that starts at line {error.context_mark.line + 1}" if error.context_mark else ""
            what = f"{what}, {error.context}{since}"
        return self.place(mark).problem(f"not YAML: {what}")

    def character_problem(self, error: Any) -> ConfigProblem:
        before = "\n".join(self._lines)[: error.position]
        line = before.count("\n")
        code = error.character if isinstance(error.character, int) else ord(error.character)
        place = Place(self._path, line + 1, len(before) - before.rfind("\n"))
        return place.problem(f"not YAML: character U+{code:04X} is not allowed")

    def convert(self, node: yaml.Node, stack: tuple[int, ...], key_place: Place | None = None) -> Node:
        place = self.place(node.start_mark)
        if id(node) in stack:
            self.problems.append(place.problem("an alias refers to a value that contains it"))
            return Node(None, place, key_place)
        inner = (*stack, id(node))
        if isinstance(node, yaml.MappingNode):
            return Node(dict(self._pairs(node, inner)), place, key_place)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(item, inner) for item in node.value], place, key_place)
        if not node.tag.startswith(_TAG) or node.tag.removeprefix(_TAG) not in _SCALARS:
            self.problems.append(
                place.problem(f"tag {node.tag.replace(_TAG, '!!')} is not allowed; write plain values")
            )
            return Node(None, place, key_place)
        return self._scalar(node, place, key_place)

    def _scalar(self, node: Any, place: Place, key_place: Place | None) -> Node:
        try:
            value = _convert(node.tag, node.value)
        except ValueError:
            kind = node.tag.removeprefix(_TAG)
            self.problems.append(place.problem(f"{format_value(node.value)} is no {kind}, as its tag says"))
            value = None
        return Node(value, place, key_place, node.value, plain=node.style is None)

    def _pairs(self, node: yaml.MappingNode, stack: tuple[int, ...]) -> Iterator[tuple[str, Node]]:
        """Yield merged entries first, so that the mapping's own keys win."""
        own: dict[str, Node] = {}
        for key, value in node.value:
            place = self.place(key.start_mark)
            if key.tag == _MERGE:
                yield from self._merged(value, stack)
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(place.problem("a key must be text, not a list or a mapping"))
                continue
            name = str(key.value)
            if name in own:
                first = own[name].key_place
                line = first.line if first is not None else 0
                self.problems.append(place.problem(f"key {name!r} is given twice, first on line {line}"))
                continue
            own[name] = self.convert(value, stack, place)
        yield from own.items()

    def _merged(self, value: yaml.Node, stack: tuple[int, ...]) -> Iterator[tuple[str, Node]]:
        sources = value.value[::-1] if isinstance(value, yaml.SequenceNode) else [value]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self.problems.append(self.place(source.start_mark).problem("<< merges mappings only"))
                continue
            merged = self.convert(source, stack)
            if isinstance(merged.value, dict):
                for key, node in merged.value.items():
                    yield key, replace(node)


_SCALARS = {"null", "bool", "int", "float", "str"}
