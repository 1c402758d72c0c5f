"""Tables: CSV and Parquet files, their columns, and rows that do not fit."""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moxserve.data.inspection.detect import Found
from moxserve.errors import DataError, MissingExtraError
from moxserve.inspect.report import Report, Table, columns
from moxserve.tabular.files import CsvFormat, csv_rows, opened

if TYPE_CHECKING:
    from moxserve.data.inspection.describe import Depth

__all__ = ["describe_csv", "describe_parquet"]

_DELIMITERS = ",;\t|"
_MOST_VALUES = 1000
_MOST_PROBLEMS = 100
_COLUMNS = columns("column:long dtype missing:count values least most")


@dataclass
class _Column:
    """What is learned of a column of text."""

    name: str
    missing: int = 0
    whole: bool = True
    number: bool = True
    values: set[str] = field(default_factory=set)
    least: float = math.inf
    most: float = -math.inf

    def add(self, text: str, look: bool) -> None:
        if not text.strip():
            self.missing += 1
            return
        if len(self.values) <= _MOST_VALUES:
            self.values.add(text)
        if look and self.number:
            self._number(text)

    def _number(self, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            self.number = self.whole = False
            return
        if self.whole:
            self.whole = text.strip().lstrip("+-").isdigit()
        self.least, self.most = min(self.least, value), max(self.most, value)

    def row(self) -> tuple[Any, ...]:
        """A row of the report."""
        seen = len(self.values)
        number = self.number and seen
        dtype = ("int64" if self.whole else "float") if number else "text" if seen else "empty"
        values = f"more than {_MOST_VALUES}" if seen > _MOST_VALUES else str(seen)
        limits = (f"{self.least:.6g}", f"{self.most:.6g}") if number else (None, None)
        return (self.name, dtype, self.missing or None, values, *limits)


def describe_csv(found: Found, depth: Depth) -> Report:
    """Look into a file of comma-, semicolon-, tab- or bar-separated values."""
    report = Report(found.path, found.kind)
    size = os.path.getsize(found.path)
    delimiter = _delimiter(found.path)
    _read(_rows(found.path, delimiter, report), report, depth)
    report.facts |= {"delimiter": {"\t": "tab"}.get(delimiter, delimiter), "size_bytes": size}
    return report


def _delimiter(path: str) -> str:
    """Tell the delimiter by the first line, the one that is there most often."""
    # What is wrong with the line is told when it is read again.
    with contextlib.suppress(OSError, EOFError, zlib.error), opened(path) as file:
        first = file.readline(1 << 16).decode("utf-8", "replace")
        return max(_DELIMITERS, key=lambda d: (first.count(d), -_DELIMITERS.index(d)))
    return ","


def _rows(path: str, delimiter: str, report: Report) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and fields; a line that cannot be read is a problem, and ends the file."""
    try:
        yield from csv_rows(path, CsvFormat(delimiter))
    except DataError as error:
        report.problems.append(f"line {error.message.removeprefix(f'{path}:')}")


def _is_header(fields: Sequence[str]) -> bool:
    """Names are no numbers."""
    if not any(name.strip() for name in fields):
        return False
    for name in fields:
        with contextlib.suppress(ValueError):
            float(name)
            return False
    return True


def _read(rows: Iterator[tuple[int, list[str]]], report: Report, depth: Depth) -> None:
    first = next(rows, None)
    if first is None:
        if not report.problems:
            report.problems.append("the file is empty")
        return
    header = first[1] if _is_header(first[1]) else [f"column {i}" for i in range(len(first[1]))]
    for place, name in enumerate(header):
        if name.strip() and name in header[:place]:
            report.problems.append(f"line {first[0]}: the column {name!r} is there twice")
    known = [_Column(name) for name in header]
    count = misfits = 0
    if header is not first[1]:
        report.notes.append("the first line holds no names: the columns are numbered")
        count = _add(known, first[1], 0, depth)
    for line, fields in rows:
        if len(fields) != len(known):
            misfits += 1
            if misfits <= _MOST_PROBLEMS:
                report.problems.append(f"line {line} has {len(fields)} fields instead of {len(known)}")
            continue
        count += _add(known, fields, count, depth)
        if not count % 10_000:
            depth.progress(count, 0)
    if misfits > _MOST_PROBLEMS:
        report.problems.append(f"{misfits - _MOST_PROBLEMS} more lines have another number of fields")
    report.facts |= {"rows": count, "columns": len(known)}
    if count > depth.rows:
        report.notes.append(f"dtypes are those of the first {depth.rows} of {count} rows; --rows looks at more")
    report.tables.append(Table("column_list", _COLUMNS, [column.row() for column in known], title="columns"))


def _add(known: Sequence[_Column], fields: Sequence[str], count: int, depth: Depth) -> int:
    for column, text in zip(known, fields, strict=True):
        column.add(text, count < depth.rows)
    return 1


def describe_parquet(found: Found, depth: Depth) -> Report:
    """Look into a Parquet file: its metadata, and with `decode` all values."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "table", "reading Parquet files") from None
    report = Report(found.path, found.kind)
    try:
        file = parquet.ParquetFile(found.path)
        metadata = file.metadata
        report.facts = {
            "rows": metadata.num_rows,
            "columns": len(file.schema_arrow),
            "row_groups": metadata.num_row_groups,
            "size_bytes": os.path.getsize(found.path),
        }
        rows = [_parquet_column(metadata, field) for field in file.schema_arrow]
        report.tables.append(Table("column_list", _COLUMNS, rows, title="columns"))
        if depth.decode:
            for number in range(metadata.num_row_groups):
                depth.progress(number, metadata.num_row_groups)
                file.read_row_group(number)
    except (pyarrow.ArrowException, OSError) as error:
        report.problems.append(str(error))
    return report


def _parquet_column(metadata: Any, field: Any) -> tuple[Any, ...]:
    """A row of the report, from the statistics of all row groups that keep some."""
    found = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = (row_group.column(i) for i in range(row_group.num_columns))
        found += [chunk.statistics for chunk in chunks if chunk.path_in_schema == field.name]
    known = [s for s in found if s is not None]
    missing = sum(s.null_count for s in known) if len(known) == len(found) and known else None
    limits = [s for s in known if s.has_min_max]
    least, most = (min(s.min for s in limits), max(s.max for s in limits)) if limits else (None, None)
    return field.name, str(field.type), missing or None, None, _cut(least), _cut(most)


def _cut(value: Any) -> str | None:
    if value is None:
        return None
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else f"{text[:20]}..."
