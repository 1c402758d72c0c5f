"""Declared columns, read and checked: from YAML or Python, what goes together, which inputs they need, vocabularies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moxserve.config.tree import Node, Place
from moxserve.errors import ConfigError, ConfigProblem, DataError, UsageError, did_you_mean
from moxserve.tabular.columns import (
    AnyColumn,
    Column,
    ColumnBase,
    Hash,
    Identity,
    InputColumn,
    SharedEmbedding,
    Vocabulary,
    Weighted,
)

__all__ = ["column_problems", "input_keys", "needed_columns", "read_columns", "read_vocabulary"]

_COLUMNS: TypeAdapter[dict[str, AnyColumn]] = TypeAdapter(dict[str, Column])


def read_columns(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, AnyColumn]:
    """Read declarations.

    Args:
        source: name -> column, as a mapping with the key `kind` or as an object of this module; or a YAML file of such.

    Raises:
        UsageError: something is wrong; every problem is told, with its key and for a file with its place.
    """
    if not isinstance(source, Mapping):
        return _read_file(os.fspath(source))
    try:
        # Pydantic takes an object of a class as it is; the tag of the union is read from both.
        columns = _COLUMNS.validate_python(dict(source))
    except ValidationError as error:
        raise UsageError("\n".join(_plain(error, source))) from None
    if problems := list(column_problems(columns)):
        raise UsageError("\n".join(f"{key}: {message}" for key, message in problems))
    return columns


def _plain(error: ValidationError, source: Mapping[str, Any]) -> Iterator[str]:
    from moxserve.config.explain import explain

    for problem in explain(error, dict[str, Column], _node(source), ""):
        yield f"{problem.key}: {problem.message}"


def _node(value: Any) -> Node:
    """Make a tree of data that was written in Python, without places."""
    if isinstance(value, Mapping):
        value = {str(key): _node(inner) for key, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        value = [_node(inner) for inner in value]
    return Node(value, Place(""))


def _read_file(path: str) -> dict[str, AnyColumn]:
    from moxserve import file
    from moxserve.config.explain import explain
    from moxserve.config.tree import parse

    tree = parse(file.read(path), path)
    if not isinstance(tree.value, dict):
        raise ConfigError([tree.place.problem("expected a mapping of names to columns")])
    problems: list[ConfigProblem] = []
    columns: dict[str, AnyColumn] = {}
    try:
        columns = _COLUMNS.validate_python(tree.data())
    except ValidationError as error:
        problems = explain(error, dict[str, Column], tree, "")
    for key, message in column_problems(columns):
        node = tree
        for part in key.split("."):
            node = node.child(part) or node
        problems.append(node.place.problem(message, key))
    if problems:
        raise ConfigError(problems)
    return columns


# ---- what goes together


def column_problems(columns: Mapping[str, ColumnBase]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong between columns: pairs of a dotted key, `NAME` or `NAME.FIELD`, and a message."""
    for name, column in columns.items():
        if "." in name or "/" in name or not name:
            yield name, f"the name {name!r} is empty, or has a dot or slash in it"
        for source in column.sources():
            if message := _wrong_source(columns, name, column, source):
                yield f"{name}.of", message
    yield from _unequal_inputs(columns)
    yield from _unequal_tables(columns)


def _wrong_source(columns: Mapping[str, ColumnBase], name: str, column: ColumnBase, source: str) -> str:
    fitting = [other for other, c in columns.items() if c.kind in column.takes and other != name]
    if source not in columns:
        return f"no column {source!r}; {did_you_mean(source, fitting)}"
    kind = columns[source].kind
    if kind in column.takes:
        return ""
    kinds = f"{', '.join(column.takes[:-1])} or {column.takes[-1]}" if len(column.takes) > 1 else column.takes[0]
    return f"{source!r} is a column of kind {kind}; expected one of kind {kinds}"


def _unequal_inputs(columns: Mapping[str, ColumnBase]) -> Iterator[tuple[str, str]]:
    """One input has one element type, and one number of values."""
    first: dict[str, tuple[str, str]] = {}
    for name, column in columns.items():
        if isinstance(column, InputColumn):
            key = column.key or name
            dtype = _dtype(column)
            known, other = first.setdefault(key, (dtype, name))
            if "string" in (known, dtype) and known != dtype:
                yield name, f"reads {key!r} as {dtype}; column {other!r} reads it as {known}"


def _unequal_tables(columns: Mapping[str, ColumnBase]) -> Iterator[tuple[str, str]]:
    for name, column in columns.items():
        if isinstance(column, SharedEmbedding):
            known = [columns[source] for source in column.of if source in columns]
            kinds = {c.kind for c in known}
            if len(kinds) > 1:
                yield f"{name}.of", f"expected columns of one kind, got {', '.join(sorted(kinds))}"


def _dtype(column: ColumnBase) -> str:
    if isinstance(column, Vocabulary):
        return column.value_dtype
    return column.dtype if isinstance(column, Hash) else "int64" if isinstance(column, Identity) else "float32"


def input_keys(columns: Mapping[str, ColumnBase], names: Sequence[str] | None = None) -> dict[str, str]:
    """Return the inputs that columns read, directly or through others: key -> dtype.

    Args:
        columns: all of them.
        names: only what these need; None for all.

    Returns:
        `float32` for numbers and weights, `int64` or `string` where a category is read; in the order of `columns`.
    """
    found: dict[str, str] = {}
    for name, column in needed_columns(columns, columns if names is None else names).items():
        if isinstance(column, InputColumn):
            key = column.key or name
            # A number that is also a category is a whole one.
            found[key] = _dtype(column) if found.get(key, "float32") == "float32" else found[key]
        elif isinstance(column, Weighted):
            found.setdefault(column.weight, "float32")
    return found


def needed_columns(columns: Mapping[str, ColumnBase], names: Iterable[str]) -> dict[str, Any]:
    """Return columns with those that they are made of, in the order of `columns`."""
    pending, found = list(names), set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += columns[name].sources()
    return {name: column for name, column in columns.items() if name in found}


def read_vocabulary(column: Vocabulary) -> list[str] | list[int]:
    """Return the values of a vocabulary, from its list or file.

    Raises:
        DataError: the file is empty or no text, has a value twice, or no whole numbers where they are expected.
    """
    if column.values is not None:
        return column.values
    from moxserve import file

    path = str(column.file)
    # A line ends with a line feed, and a carriage return before it is dropped: TensorFlow reads it so, too.
    lines = [line.removesuffix("\r") for line in _text(file.read(path, binary=True), path).split("\n")]
    lines = lines[:-1] if lines[-1] == "" else lines
    if column.size is not None and column.size > len(lines):
        raise DataError(f"{path} has {len(lines)} lines; size asks for {column.size}")
    lines = lines[: column.size]
    if not lines:
        raise DataError(f"{path} is empty; expected one value a line")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            raise DataError(f"{path}:{number}: is empty; empty text stands for a missing value")
        if line in seen:
            raise DataError(f"{path}:{number}: {line!r} is in line {seen[line]}, too")
        seen[line] = number
    return _whole(lines, path) if column.value_dtype == "int64" else lines


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _whole(lines: Sequence[str], path: str) -> list[int]:
    numbers = []
    for place, line in enumerate(lines, start=1):
        try:
            numbers.append(int(line))
        except ValueError:
            raise DataError(f"{path}:{place}: {line!r} is no whole number, and dtype is int64") from None
    return numbers
