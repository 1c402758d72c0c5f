"""What commands print: JSON for scripts, tables for people. Data goes to stdout, talk to stderr.

rich is imported only when a table goes to a terminal; into a pipe or a file the same table is plain
aligned text.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["echo_json", "echo_table"]


def echo_json(value: Any) -> None:
    """Print a value as indented JSON on stdout; arrays and dataclasses included."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    click.echo(orjson.dumps(value, option=options, default=str).decode())


def echo_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, wrap: Mapping[str, int] | None = None
) -> None:
    """Print rows under headings on stdout.

    Args:
        columns: headings, in lower case.
        rows: one sequence a row, as long as `columns`.
        wrap: smallest width of columns that may wrap on a narrow terminal; the others never do.
    """
    text = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, text, wrap or {})
        return
    widths = [max(len(line[i]) for line in [list(columns), *text]) for i in range(len(columns))]
    for line in [[c.upper() for c in columns], *text]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: Mapping[str, int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), no_wrap=column not in wrap, min_width=wrap.get(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
