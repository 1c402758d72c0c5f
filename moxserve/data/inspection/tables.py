"""Tables: CSV and Parquet files, their columns, and rows that do not fit."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moxserve.data.inspection.detect import Found
from moxserve.errors import MissingExtraError
from moxserve.inspect.report import Report, Table, columns

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
    try:
        with open(found.path, encoding="utf-8-sig", newline="") as file:
            sample = file.read(1 << 16)
            delimiter = _delimiter(sample)
            file.seek(0)
            rows = _rows(csv.reader(file, delimiter=delimiter, strict=True), report)
            _read(rows, report, depth)
    except UnicodeDecodeError as error:
        report.problems.append(f"not UTF-8: byte {error.object[error.start]:#04x} near byte {error.start} of a block")
        return report
    report.facts |= {"delimiter": {"\t": "tab"}.get(delimiter, delimiter), "size_bytes": size}
    return report


def _delimiter(sample: str) -> str:
    """Tell the delimiter by the first line, the one that is there most often."""
    first = sample.partition("\n")[0]
    return max(_DELIMITERS, key=lambda d: (first.count(d), -_DELIMITERS.index(d)))


def _rows(reader: Any, report: Report) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and fields; a line that cannot be read is a problem, and ends the file."""
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        report.problems.append(f"line {reader.line_num}: {error}")


def _is_header(fields: Sequence[str]) -> bool:
    """Names are different from each other, and no numbers."""
    if len(set(fields)) != len(fields) or not all(name.strip() for name in fields):
        return False
    for name in fields:
        with contextlib.suppress(ValueError):
            float(name)
            return False
    return True


def _read(rows: Iterator[tuple[int, list[str]]], report: Report, depth: Depth) -> None:
    first = next(rows, None)
    if first is None:
        report.problems.append("the file is empty")
        return
    header = first[1] if _is_header(first[1]) else [f"column {i}" for i in range(len(first[1]))]
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
        rows = [_parquet_column(metadata, name, file.schema_arrow) for name in file.schema_arrow.names]
        report.tables.append(Table("column_list", _COLUMNS, rows, title="columns"))
        if depth.decode:
            for number in range(metadata.num_row_groups):
                depth.progress(number, metadata.num_row_groups)
                file.read_row_group(number)
    except (pyarrow.ArrowException, OSError) as error:
        report.problems.append(str(error))
    return report


def _parquet_column(metadata: Any, name: str, schema: Any) -> tuple[Any, ...]:
    """A row of the report, from the statistics of all row groups that keep some."""
    found = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = (row_group.column(i) for i in range(row_group.num_columns))
        found += [chunk.statistics for chunk in chunks if chunk.path_in_schema == name]
    known = [s for s in found if s is not None]
    missing = sum(s.null_count for s in known) if len(known) == len(found) and known else None
    limits = [s for s in known if s.has_min_max]
    least, most = (min(s.min for s in limits), max(s.max for s in limits)) if limits else (None, None)
    return name, str(schema.field(name).type), missing or None, None, _cut(least), _cut(most)


def _cut(value: Any) -> str | None:
    if value is None:
        return None
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else f"{text[:20]}..."
