"""The mini-language of the Graph Transform Tool: `name`, or `name(argument=value, argument="quoted value")`.

    list       = { transform separator }        separator: white space, commas, line breaks
    transform  = name [ "(" [ argument { "," argument } ] ")" ]
    argument   = name "=" value
    value      = bare | '"' text '"' | "'" text "'"        a backslash takes the next character as it is
    bare       = letters, digits and _ - + . / : * @ ~ ^

Arguments may repeat. All transforms take `ignore_errors` (or `ignore_error`): a failure then leaves the graph as it
was. A backslash at the end of a line counts as white space, as in the shell. No TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from moxserve.errors import UsageError, did_you_mean
from moxserve.export.transforms.catalogue import ALIASES, GONE, TRANSFORMS, Argument, TransformInfo

__all__ = ["Transform", "format_transforms", "parse_bool", "parse_shape", "parse_transforms"]

_NAME = re.compile(r"[A-Za-z0-9_]+")
_BARE = re.compile(r"[A-Za-z0-9_+./:*@~^-]+")
_SPACE = re.compile(r"(?:\s|\\\r?\n)+")
_SEPARATORS = re.compile(r"(?:[\s,]|\\\r?\n)+")
_IGNORE = ("ignore_errors", "ignore_error")
_DTYPE = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Transform:
    """A transform with its arguments, checked.

    Attributes:
        name: key of `TRANSFORMS`.
        arguments: names and values as they were given, in order; those left out are not here.
        ignore_errors: a failure leaves the graph as it was, instead of ending the export.
    """

    name: str
    arguments: tuple[tuple[str, str], ...] = ()
    ignore_errors: bool = False

    @property
    def info(self) -> TransformInfo:
        """What the catalogue says of it."""
        return TRANSFORMS[self.name]

    def all(self, name: str) -> list[str]:
        """Return each value given for an argument, in order; empty when there is none."""
        return [value for key, value in self.arguments if key == name]

    def get(self, name: str) -> str:
        """Return the value of an argument, or its default."""
        given = self.all(name)
        argument = self.info.argument(name)
        return given[0] if given else argument.default if argument else ""

    def __str__(self) -> str:
        parts = [f"{name}={_quoted(value)}" for name, value in self.arguments]
        if self.ignore_errors:
            parts.append("ignore_errors=true")
        return f"{self.name}({', '.join(parts)})" if parts else self.name


def _quoted(value: str) -> str:
    if _BARE.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def format_transforms(transforms: Iterable[Transform]) -> str:
    """Write transforms as text that `parse_transforms` reads back."""
    return " ".join(str(transform) for transform in transforms)


def parse_bool(text: str) -> bool:
    """Read `true`, `false`, `1` or `0`, in any case.

    Raises:
        ValueError: it is something else.
    """
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def parse_shape(text: str) -> tuple[int | None, ...]:
    """Read sizes with commas between, -1 or ? for one that may vary; empty for a scalar.

    Raises:
        ValueError: it is something else.
    """
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    sizes = [None if word in ("-1", "?") else int(word) for word in words]
    if any(size is not None and size < 0 for size in sizes):
        raise ValueError(text)
    return tuple(sizes)


def parse_transforms(text: str | Sequence[str]) -> tuple[Transform, ...]:
    """Read a list of transforms.

    Args:
        text: the list in one text, or a sequence of such texts.

    Returns:
        The transforms in order.

    Raises:
        UsageError: a transform or an argument is unknown, a value is none, or the text cannot be read; says in which
            column, and what was expected.
    """
    if isinstance(text, str):
        return tuple(_Reader(text, "").read())
    found: list[Transform] = []
    for i, part in enumerate(text, 1):
        if not isinstance(part, str):
            raise UsageError(f"transforms: item {i} is {part!r}; expected text such as remove_nodes(op=Identity)")
        found.extend(_Reader(part, f"item {i}, ").read())
    return tuple(found)


class _Reader:
    """One pass over a text; columns count from 1, lines are named when there are several."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._at = 0

    def read(self) -> Iterator[Transform]:
        self._skip(_SEPARATORS)
        while self._at < len(self._text):
            start = self._at
            name = self._take(_NAME, "the name of a transform")
            self._skip(_SPACE)
            given = list(self._arguments(name)) if self._peek() == "(" else []
            yield self._transform(name, given, start)
            self._skip(_SEPARATORS)

    def _arguments(self, transform: str) -> Iterator[tuple[str, str, int]]:
        opened = self._at
        self._at += 1
        while True:
            self._skip(_SEPARATORS)
            if self._peek() == ")":
                self._at += 1
                return
            if not self._peek():
                raise self._error(f"the bracket of {transform} is not closed; expected ) ", opened)
            start = self._at
            name = self._take(_NAME, f"an argument of {transform}, or )")
            self._skip(_SPACE)
            if self._peek() != "=":
                raise self._error(f"expected = and a value after argument {name!r} of {transform}", self._at)
            self._at += 1
            self._skip(_SPACE)
            yield name, self._value(name), start

    def _value(self, name: str) -> str:
        quote = self._peek()
        if not quote or quote not in "\"'":
            return self._take(_BARE, f"a value for {name}, in quotes if it has spaces or commas")
        opened, found = self._at, []
        self._at += 1
        while self._peek() != quote:
            if self._peek() == "\\":
                self._at += 1
            if not self._peek():
                raise self._error(f"the value of {name} has no closing {quote}", opened)
            found.append(self._peek())
            self._at += 1
        self._at += 1
        return "".join(found)

    def _transform(self, name: str, given: list[tuple[str, str, int]], start: int) -> Transform:
        name = ALIASES.get(name, name)
        info = TRANSFORMS.get(name)
        if info is None:
            why = GONE.get(name)
            known = did_you_mean(name, [*TRANSFORMS, *ALIASES])
            raise self._error(
                f"transform {name!r} is gone: {why}" if why else f"unknown transform {name!r}; {known}", start
            )
        arguments: list[tuple[str, str]] = []
        ignore = False
        for key, value, at in given:
            if key in _IGNORE:
                ignore = self._flag(key, value, at)
                continue
            argument = info.argument(key)
            if argument is None:
                names = [a.name for a in info.arguments]
                raise self._error(f"{name} has no argument {key!r}; {did_you_mean(key, [*names, _IGNORE[0]])}", at)
            problem = _problem(argument, value)
            if problem:
                raise self._error(f"{name}: {key}={value!r}: expected {problem}", at)
            if not argument.repeatable and any(key == k for k, _ in arguments):
                raise self._error(f"{name}: {key} is given twice; expected one value", at)
            arguments.append((key, value))
        problem = _incomplete(info, [key for key, _ in arguments])
        if problem:
            raise self._error(f"{name} {problem}", start)
        return Transform(name, tuple(arguments), ignore)

    def _flag(self, key: str, value: str, at: int) -> bool:
        try:
            return parse_bool(value)
        except ValueError:
            raise self._error(f"{key}={value!r}: expected true or false", at) from None

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._error(f"expected {what}, found {self._text[self._at : self._at + 1] or 'the end'!r}", self._at)
        self._at = match.end()
        return match.group()

    def _error(self, message: str, at: int) -> UsageError:
        before = self._text[:at]
        column = at - (before.rfind("\n") + 1) + 1
        line = f"line {before.count(chr(10)) + 1}, " if "\n" in self._text else ""
        return UsageError(f"transforms, {self._where}{line}column {column}: {message.strip()}")


def _problem(argument: Argument, value: str) -> str:
    """Return what was expected instead of a value; empty when it is right."""
    kind = argument.kind
    if kind in ("int", "float"):
        return _number_problem(argument, value)
    if kind == "dtype":
        return "" if _DTYPE.fullmatch(value) else "a type such as float or uint8"
    if kind in ("bool", "shape"):
        read, what = (parse_bool, "true or false") if kind == "bool" else (parse_shape, 'sizes such as "1,224,224,3"')
        try:
            read(value)
        except ValueError:
            return what
        return ""
    return "" if value or kind == "string" else "a name"


def _number_problem(argument: Argument, value: str) -> str:
    what = "a whole number" if argument.kind == "int" else "a number"
    low, high = argument.minimum, argument.maximum
    if low is not None:
        what += f" of {low:g} or more" if high is None else f" from {low:g} to {high:g}"
    try:
        number = int(value) if argument.kind == "int" else float(value)
    except ValueError:
        return what
    inside = (low is None or number >= low) and (high is None or number <= high) and abs(number) < 2**63
    return "" if inside else what


def _incomplete(info: TransformInfo, given: Sequence[str]) -> str:
    """Return what is missing among the arguments; empty when nothing is."""
    for argument in info.arguments:
        if argument.required and argument.name not in given:
            return f"needs {argument.name}=...: {argument.help}"
    for group in info.together:
        if len({given.count(name) for name in group}) > 1:
            return f"needs {' and '.join(group)} together, or none of them"
    names = given.count("name")
    for other in ("type_for_name", "shape_for_name"):
        if given.count(other) not in (0, names) and info.argument(other):
            return f"needs one {other} for each name, or none"
    if info.argument("type_for_name") and names and not {"type_for_name", "shape_for_name"} & set(given):
        return "needs type_for_name or shape_for_name for each name"
    return ""
