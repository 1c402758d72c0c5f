"""What `moxserve inspect` prints: the report of a subject, and what came of a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moxserve.inspect.convert.run import Converted
    from moxserve.inspect.report import Column, Report, Table

__all__ = ["echo_converted", "echo_report", "echo_tables"]


def echo_report(report: Report, as_json: bool) -> None:
    """Print a report; then fail if what was found is not right.

    Raises:
        VerificationError: there are problems.
    """
    from moxserve.cli.render import echo_json
    from moxserve.errors import VerificationError
    from moxserve.file.standins import by_url

    report = report.renamed(by_url)
    if as_json:
        echo_json(report.to_json())
    else:
        echo_tables(report)
    if report.problems:
        more = "" if len(report.problems) == 1 else f" (and {len(report.problems) - 1} more above)"
        raise VerificationError(f"{report.path}: {report.problems[0]}{more}")


def echo_tables(report: Report) -> None:
    """Print a report: facts, tables, notes, problems."""
    click.secho(report.path, bold=True)
    labels = {key: _label(key) for key in report.facts}
    width = max(map(len, labels.values()), default=0) + 2
    for key, value in report.facts.items():
        click.echo(f"  {labels[key]:<{width}}{_fact(key, value)}")
    for table in report.tables:
        click.echo()
        _echo_table(table)
    for word, sentences in (("note", report.notes), ("problem", report.problems)):
        for text in sentences:
            click.echo(f"{word}: {text}", err=True)


def _echo_table(table: Table) -> None:
    """Print a table under its title, without the columns that are empty throughout: they say nothing."""
    from moxserve.cli.render import echo_table

    count = str(table.count or len(table.rows))
    if table.total:
        count += f" of {table.total}, --all for the rest"
    click.secho(f"{(table.title or table.key).replace('_', ' ')} ({count})", bold=True)
    told = [i for i, column in enumerate(table.columns) if column.kind != "data"]
    shown = [i for i in told if any(row[i] not in (None, "") for row in table.rows)]
    if not shown:
        return
    kinds = {table.columns[i].name.replace("_", " "): table.columns[i].kind for i in shown}
    echo_table(
        list(kinds),
        [[_cell(table.columns[i], row[i]) for i in shown] for row in table.rows],
        cut={name: 12 for name, kind in kinds.items() if kind == "long"},
        right=[name for name, kind in kinds.items() if kind in ("count", "bytes", "figure")],
    )


def _label(key: str) -> str:
    """Write the name of a fact: `size_bytes` is the size, `variables_bytes` the size of the variables."""
    name = key.replace("_", " ")
    return name.removesuffix(" bytes") if name == "size bytes" else name.replace(" bytes", " size")


def _fact(key: str, value: Any) -> str:
    from moxserve.cli.render import bytes_text

    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return bytes_text(value) if key.endswith("bytes") else f"{value:,}" if value >= 10_000 else str(value)
    return str(value)


def _cell(column: Column, value: Any) -> str:
    from moxserve.cli.render import bytes_text
    from moxserve.inspect.report import shape_text

    if column.kind == "shape":
        return shape_text(value)
    if value is None:
        return ""
    if column.kind == "bytes":
        return bytes_text(value)
    if column.kind == "figure":
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return f"{value:,}" if column.kind == "count" and value >= 10_000 else str(value)


def echo_converted(done: Converted, as_json: bool) -> None:
    """Print what a conversion wrote, and of what."""
    from moxserve.cli.render import echo_json

    if as_json:
        echo_json({"path": done.path, "form": done.form, "source": done.source, **done.facts, "notes": done.notes})
        return
    click.echo(f"wrote {done.path} ({done.form}) from {done.source}")
    for key, value in done.facts.items():
        click.echo(f"  {_label(key):<12}{_fact(key, value)}")
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
