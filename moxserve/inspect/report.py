"""What an inspection found: facts and tables, ready for a terminal or for JSON. Knows nothing of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moxserve.types import TensorSpec

__all__ = ["Column", "Report", "Table", "columns", "shape_text", "tensor_text"]

ColumnKind = Literal["text", "long", "data", "count", "bytes", "figure", "shape"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: heading, and key in JSON.
        kind: `long` is text that may be cut on a narrow terminal; `data` is for JSON only; `count`, `bytes` and
            `figure` are numbers; `shape` is a tuple of dimensions, None for one that varies, None as a whole when the
            rank varies.
    """

    name: str
    kind: ColumnKind = "text"


def columns(text: str) -> tuple[Column, ...]:
    """Read columns from `name:kind` words; without a kind it is `text`. `_` in a name is a blank in the heading."""
    parts = (word.partition(":") for word in text.split())
    return tuple(Column(name, kind or "text") for name, _, kind in parts)  # type: ignore[arg-type]


@dataclass
class Table:
    """Rows under headings.

    Attributes:
        key: in JSON.
        columns: of each row.
        rows: raw values, in the order of the columns.
        title: above the table; empty takes the key.
        total: how many rows there are in all, where only some are in `rows`; None when these are all.
        count: how many things the rows tell of, where one has several rows; None when each has one.
    """

    key: str
    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]]
    title: str = ""
    total: int | None = None
    count: int | None = None

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dicts, for JSON."""
        return [{c.name: value for c, value in zip(self.columns, row, strict=True)} for row in self.rows]


@dataclass
class Report:
    """What was found.

    Attributes:
        path: what was looked at: a version directory, a file, a checkpoint's prefix.
        kind: as `moxserve.inspect.detect` names it.
        facts: single values, in the order to show them.
        tables: in the order to show them.
        notes: what the reader should know, one sentence each.
        problems: what is wrong with the files, one sentence each.
    """

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def renamed(self, rename: Callable[[str], str]) -> Report:
        """Return the same report with each text in it as `rename` gives it."""

        def told(value: Any) -> Any:
            if isinstance(value, list):
                return [told(item) for item in value]
            return rename(value) if isinstance(value, str) else value

        tables = [replace(t, rows=[tuple(map(told, row)) for row in t.rows]) for t in self.tables]
        facts = {key: told(value) for key, value in self.facts.items()}
        return Report(rename(self.path), self.kind, facts, tables, told(self.notes), told(self.problems))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values; lists that would be empty are left out, but `notes` and `problems`."""
        found: dict[str, Any] = {"path": self.path, "kind": self.kind, **self.facts}
        for table in self.tables:
            found[table.key] = table.records()
            if table.total is not None:
                found[f"{table.key}_total"] = table.total
        return {**found, "notes": self.notes, "problems": self.problems}


def shape_text(shape: Sequence[int | None] | None) -> str:
    """Write a shape as `[?, 28, 28, 1]`; `[...]` when the rank varies."""
    return "[...]" if shape is None else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def tensor_text(spec: TensorSpec) -> str:
    """Write dtype and shape as `float32[?, 10]`."""
    return f"{spec.dtype.name}{shape_text(spec.shape)}"
