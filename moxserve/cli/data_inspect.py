"""`moxserve data inspect`: what is in a data set, and what is broken in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moxserve.inspect.report import Report

__all__ = ["inspect"]

_SHOWN = 20


@click.command(epilog="\b\nExample:\n  moxserve data inspect data/textures --decode --strict")
@click.argument("path", type=click.Path())
@click.option("--decode", is_flag=True, help="Decode every image and read every value, not only headers and checksums.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="How many records or rows are looked at for dtypes and lengths; all are counted.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if something is broken.")
@click.option(
    "--all", "all_problems", is_flag=True, help=f"Name everything that is broken, not only the first {_SHOWN}."
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON, with everything that is broken.")
def inspect(path: str, decode: bool, rows: int, strict: bool, all_problems: bool, as_json: bool) -> None:
    """Tell what PATH is: kinds, counts per class, sizes, formats, features; and name what is broken.

    PATH is a folder of images (a folder per class, or images/ and labels/), TFRecord, CSV, Parquet, npz, IDX or LMDB
    files, or a folder of those. Of several data sets in it, such as train and eval, each is told. What is in a
    store (s3://, obs://) is fetched.
    """
    from moxserve.cli.render import echo_json
    from moxserve.data.inspection.describe import Depth, describe
    from moxserve.errors import DataError
    from moxserve.file.standins import by_url, copied_here

    with copied_here(path) as here, _bar() as progress:
        reports = describe(here, Depth(decode=decode, rows=rows, progress=progress))
        reports = [report.renamed(by_url) for report in reports]
    if as_json:
        found = [report.to_json() for report in reports]
        echo_json(found[0] if len(found) == 1 and found[0]["path"] == path else {"path": path, "data_sets": found})
    else:
        for number, report in enumerate(reports):
            if number:
                click.echo()
            _echo(report, all_problems)
    count = sum(len(report.problems) for report in reports)
    if count and strict:
        raise DataError(f"{path}: {count} thing(s) are broken")


def _echo(report: Report, all_problems: bool) -> None:
    from moxserve.cli.inspect_show import echo_tables

    problems = report.problems
    if len(problems) > _SHOWN and not all_problems:
        report.problems = [*problems[:_SHOWN], f"... and {len(problems) - _SHOWN} more; --all names them"]
    report.facts = {"kind": report.kind, **report.facts, "broken": len(problems)}
    echo_tables(report)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show how far it is, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
