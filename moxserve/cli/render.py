"""What commands print: JSON for scripts, tables for people. Data goes to stdout, talk to stderr.

rich is imported only when a table goes to a terminal; into a pipe or a file the same table is plain
aligned text.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["bytes_text", "echo_json", "echo_table"]


def echo_json(value: Any) -> None:
    """Print a value as indented JSON on stdout; arrays and dataclasses included."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    click.echo(orjson.dumps(value, option=options, default=str).decode())


def echo_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    wrap: Mapping[str, int] | None = None,
    cut: Mapping[str, int] | None = None,
    right: Collection[str] = (),
) -> None:
    """Print rows under headings on stdout.

    Args:
        columns: headings, in lower case.
        rows: one sequence a row, as long as `columns`.
        wrap: smallest width of columns that may wrap on a narrow terminal.
        cut: smallest width of columns that end in an ellipsis there instead; all others keep their width. Nothing is
            wrapped or cut into a pipe or a file.
        right: columns that are flush right, as numbers are.
    """
    text = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, text, _Widths(wrap or {}, cut or {}, right))
        return
    widths = [max(len(line[i]) for line in [list(columns), *text]) for i in range(len(columns))]
    for line in [[c.upper() for c in columns], *text]:
        cells = zip(columns, line, widths, strict=True)
        told = (cell.rjust(width) if column in right else cell.ljust(width) for column, cell, width in cells)
        click.echo("  ".join(told).rstrip())


@dataclass(frozen=True)
class _Widths:
    wrap: Mapping[str, int]
    cut: Mapping[str, int]
    right: Collection[str]


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: _Widths) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    smallest = {**widths.wrap, **widths.cut}
    for column in columns:
        # A column to be cut must be one that may wrap, or it is never made narrower; its cells then refuse to.
        table.add_column(
            column.upper(),
            no_wrap=column not in smallest,
            min_width=smallest.get(column),
            overflow="ellipsis" if column in widths.cut else "fold",
            justify="right" if column in widths.right else "left",
        )
    for row in rows:
        table.add_row(*(Text(t, no_wrap=c in widths.cut or None) for c, t in zip(columns, row, strict=True)))
    Console().print(table)


def bytes_text(size: int | None) -> str:
    """Write a size for people: `312 B`, `4.1 kB`, `13.2 MB`, in powers of 1000; nothing for None."""
    if size is None:
        return ""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.95 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
