"""The report of an export: `report.json` for programs, `report.html` for people, a table for the terminal.

`model` says what it holds; `page` draws it, `plots` its pictures. The exporter fills the models in.
"""

from __future__ import annotations

from typing import NamedTuple

from moxserve.export.report.model import Report

__all__ = ["Report", "SummaryTable", "render_summary", "write_report"]


class SummaryTable(NamedTuple):
    """A table for `moxserve.cli.render.echo_table`.

    Attributes:
        columns: headings; those that would be empty are left out.
        rows: a variant each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(directory: str, report: Report, *, page: bool = True) -> list[str]:
    """Write `report.json` and `report.html` into a folder, which is made if it is not there.

    Args:
        directory: the folder.
        report: what was found.
        page: also write the page.

    Returns:
        The paths of the files.

    Raises:
        MissingExtraError: jinja2 is not installed, and the page is wanted.
        DataError: something in the report cannot be written as JSON.
    """
    raise RuntimeError((directory, report, page))


def render_summary(report: Report) -> SummaryTable:
    """Return the table of variants that a terminal shows."""
    raise RuntimeError(report)
