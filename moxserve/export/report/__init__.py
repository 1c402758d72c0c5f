"""The report of an export: `report.json` for programs, `report.html` for people, a table for the terminal.

`model` says what it holds, `text` how numbers are written; `page` draws it, `plots` its pictures.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from moxserve import file
from moxserve.export.document import read_document, write_document
from moxserve.export.report.model import SCHEMA_VERSION, Report

__all__ = ["JSON_FILE", "PAGE_FILE", "Report", "SummaryTable", "read_report", "render_summary", "write_report"]

JSON_FILE = "report.json"
PAGE_FILE = "report.html"


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
        MissingExtraError: jinja2 is not installed, and the page is wanted; `report.json` is written.
        DataError: something in the report cannot be written as JSON.
    """
    paths = [os.path.join(directory, JSON_FILE)]
    write_document(paths[0], report, "report")
    if page:
        from moxserve.export.report.page import render_page

        paths.append(os.path.join(directory, PAGE_FILE))
        file.write(paths[1], render_page(report).encode(), binary=True)
    return paths


def read_report(path: str) -> Report:
    """Read `report.json`.

    Args:
        path: of the file, or of the folder that holds it.

    Raises:
        DataError: it is no report, or of a newer schema than this program knows.
    """
    if file.is_directory(path):
        path = os.path.join(path, JSON_FILE)
    return read_document(path, Report, SCHEMA_VERSION, "the report of an export")


def render_summary(report: Report) -> SummaryTable:
    """Return the table of variants that a terminal shows."""
    from moxserve.export.report.text import cells

    return SummaryTable(*cells(report, narrow=True))
