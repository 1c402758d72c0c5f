"""The rows of CSV, Parquet and TFRecord files, one by one or in chunks, each cell checked, and named when it is wrong.

CSV is read with Python's csv module, strictly: what is wrong in a line is an error. Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moxserve.errors import DataError, MissingExtraError, did_you_mean
from moxserve.file import File
from moxserve.tabular.cells import CellError, Field, from_text, from_value

__all__ = [
    "FORMATS",
    "CsvFormat",
    "column_names",
    "csv_rows",
    "csv_table",
    "file_format",
    "from_cell",
    "opened",
    "read_rows",
]

FORMATS = ("csv", "parquet", "tfrecord")
_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".data": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".tfrecord": "tfrecord", ".tfrecords": "tfrecord", ".record": "tfrecord",
}  # fmt: skip
_CHUNK_ROWS = 4096
# One cell may be a whole text; Python's own limit is 128 KiB.
_MAX_CELL = 1 << 26

Row = tuple[str, list[Any]]


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Attributes:
        delimiter: between cells; one character. None: a tab in `.tsv` files, a comma in others.
        quote: around cells; doubled inside. Empty: no cell is quoted.
        header: whether the first line names the columns.
        names: of the columns, where no line does.
        missing: texts of a cell that stand for no value.
        separator: between the values of a cell that has several.
        skip_space: whether spaces after a delimiter belong to no cell.
    """

    delimiter: str | None = None
    quote: str = '"'
    header: bool = True
    names: Sequence[str] | None = None
    missing: Sequence[str] = ("",)
    separator: str = "|"
    skip_space: bool = False


def file_format(path: str, told: str | None = None) -> str:
    """Return the format of a file: what was told, or what its suffix says (`.gz` after it is of no matter).

    Raises:
        DataError: the suffix is none that is known.
    """
    if told is not None:
        return told
    name = os.path.basename(path).lower().removesuffix(".gz")
    found = _SUFFIXES.get(os.path.splitext(name)[1])
    if found is None:
        raise DataError(
            f"{path}: no known suffix; {did_you_mean(os.path.splitext(name)[1], _SUFFIXES, 20)}",
            hint=f"say `format: {' | '.join(FORMATS)}`",
        )
    return found


def read_rows(
    path: str, fields: Sequence[Field], style: CsvFormat | None = None, told: str | None = None
) -> Iterator[list[Row]]:
    """Yield the rows of a file in chunks.

    Args:
        path: the file.
        fields: columns to read.
        style: of a CSV file.
        told: the format, where the suffix does not tell it.

    Yields:
        Lists of a row's place, such as `train.csv:12`, and its values in the order of `fields`; a list of values where
        a column has several.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a wrong cell; with its place.
        MissingExtraError: it is a Parquet file, and pyarrow is not installed.
    """
    kind = file_format(path, told)
    if kind == "csv":
        rows = _csv(path, fields, style or CsvFormat())
    else:
        rows = _parquet(path, fields) if kind == "parquet" else _examples(path, fields)
    while chunk := list(itertools.islice(rows, _CHUNK_ROWS)):
        yield chunk


def column_names(path: str, style: CsvFormat | None = None, told: str | None = None) -> list[str]:
    """Return the columns that a file has, reading as little of it as tells them.

    Raises:
        DataError: the file cannot be read.
        MissingExtraError: it is a Parquet file, and pyarrow is not installed.
    """
    kind = file_format(path, told)
    if kind == "csv":
        header, rows = csv_table(path, style or CsvFormat())
        rows.close()
        return header
    if kind == "parquet":
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    from moxserve.protocol.examples import read_examples

    return list(next(read_examples(path), {}))


@contextmanager
def _placed(place: str, field: Field, cell: int | None = None) -> Iterator[None]:
    try:
        yield
    except CellError as error:
        where = place if cell is None else f"{place}:{cell + 1}"
        raise DataError(f"{where}: column {field.name!r} {_verb(error.message)}", hint=error.hint) from None


def _verb(message: str) -> str:
    return message if message.startswith(("is ", "has ")) else f"is wrong: {message}"


def _positions(path: str, fields: Sequence[Field], names: Sequence[str]) -> list[int]:
    for field in fields:
        if field.name not in names:
            raise DataError(f"{path} has no column {field.name!r}; {did_you_mean(field.name, names, 20)}")
        if names.count(field.name) > 1:
            raise DataError(f"{path}: the column {field.name!r} is there twice")
    return [names.index(field.name) for field in fields]


# ---- CSV


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open a file to read its bytes, unpacked where its name ends in `.gz`."""
    with File(path, "rb") as raw:
        if path.lower().endswith(".gz"):
            import gzip

            yield gzip.GzipFile(fileobj=raw)
        else:
            yield raw


def _delimiter(path: str, style: CsvFormat) -> str:
    if style.delimiter is not None:
        return style.delimiter
    return "\t" if path.lower().removesuffix(".gz").endswith(".tsv") else ","


def csv_rows(path: str, style: CsvFormat) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a CSV file, the header among them: number of the line that a row begins in, and its cells.

    Raises:
        DataError: it is no UTF-8 text, or a line's quotes are wrong.
    """
    csv.field_size_limit(_MAX_CELL)
    line = 1
    with opened(path) as data:
        text = io.TextIOWrapper(data, "utf-8-sig", newline="")
        reader = csv.reader(
            text,
            delimiter=_delimiter(path, style),
            quotechar=style.quote or None,
            quoting=csv.QUOTE_MINIMAL if style.quote else csv.QUOTE_NONE,
            skipinitialspace=style.skip_space,
            strict=True,
        )
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            wrong = f"byte {error.object[error.start]:#04x}"
            raise DataError(f"{path}:{_undecodable_line(path)}: is not UTF-8 text: {wrong}") from None
        except (csv.Error, EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}:{line}: {error}") from None


def _undecodable_line(path: str) -> int:
    """Find the line: text is decoded in blocks, far ahead of the rows."""
    with opened(path) as data:
        for number, line in enumerate(data, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def csv_table(path: str, style: CsvFormat) -> tuple[list[str], Any]:
    """Return the names of a CSV file's columns, and an iterator of its rows as `csv_rows` gives them.

    Raises:
        DataError: as `csv_rows`, at once or while iterating; or the file is empty, or a name is there twice.
    """
    rows: Any = csv_rows(path, style)
    if not style.header:
        first = next(rows, None)
        if first is None:
            raise DataError(f"{path} is empty")
        names = list(style.names) if style.names is not None else [str(i) for i in range(len(first[1]))]
        return names, _chain(first, rows)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty; expected a line with the names of the columns")
    names = [name.strip() for name in first[1]]
    for place, name in enumerate(names):
        # Spreadsheets write columns without names behind the others.
        if name and name in names[:place]:
            raise DataError(f"{path}:{first[0]}:{place + 1}: the column {name!r} is there twice")
    return names, rows


def _chain(first: Any, rows: Any) -> Iterator[Any]:
    yield first
    yield from rows


def _csv(path: str, fields: Sequence[Field], style: CsvFormat) -> Iterator[Row]:
    names, rows = csv_table(path, style)
    columns = list(zip(fields, _positions(path, fields, names), strict=True))
    for line, cells in rows:
        place = f"{path}:{line}"
        if len(cells) != len(names):
            raise DataError(f"{place}: has {len(cells)} cells; expected {len(names)}: {', '.join(names[:8])}")
        values = []
        for field, position in columns:
            with _placed(place, field, position):
                values.append(from_cell(cells[position], field, style))
        yield place, values


def from_cell(text: str, field: Field, style: CsvFormat) -> Any:
    """Read a cell: a value, or a list of them where the column has several.

    Raises:
        CellError: it is no such value, or missing where it must not be.
    """
    if not field.several:
        return from_text(text, field, style.missing)
    if text in style.missing:
        return []
    return [from_text(part, field, style.missing) for part in text.split(style.separator)]


# ---- Parquet


@contextmanager
def _open_parquet(path: str) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "table", f"reading {path}") from None
    with File(path, "rb") as raw:
        try:
            file = pq.ParquetFile(raw)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from None
        yield file


def _parquet(path: str, fields: Sequence[Field]) -> Iterator[Row]:
    import pyarrow as pa

    with _open_parquet(path) as file:
        _positions(path, fields, file.schema_arrow.names)
        number = 0
        try:
            # Row group by row group: never more of the file in memory than one and what was made of the others.
            for batch in file.iter_batches(_CHUNK_ROWS, columns=[field.name for field in fields]):
                lists = [batch.column(field.name).to_pylist() for field in fields]
                for values in zip(*lists, strict=True):
                    number += 1
                    yield _typed_row(f"{path}:{number}", fields, values)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: row {number + 1}: {error}") from None


def _typed_row(place: str, fields: Sequence[Field], values: Sequence[Any]) -> Row:
    found = []
    for field, value in zip(fields, values, strict=True):
        with _placed(place, field):
            found.append(_typed(value, field))
    return place, found


def _typed(value: Any, field: Field) -> Any:
    if isinstance(value, (list, tuple)):
        if field.several:
            return [from_value(item, field) for item in value]
        if len(value) > 1:
            raise CellError(f"has {len(value)} values", hint=f"set `several: true` for the column {field.name!r}")
        return from_value(value[0] if value else None, field)
    if field.several:
        return [] if value is None else [from_value(value, field)]
    return from_value(value, field)


# ---- tf.Examples


def _examples(path: str, fields: Sequence[Field]) -> Iterator[Row]:
    from moxserve.protocol.examples import read_examples

    absent = {field.name for field in fields}
    number = -1
    for number, example in enumerate(read_examples(path)):
        absent -= example.keys()
        features: Mapping[str, Any] = example
        values = [features[f.name].tolist() if f.name in features else None for f in fields]
        place = f"{path}:{number + 1}"
        try:
            row = _typed_row(place, fields, values)
        except DataError as error:
            raise _misspelt(place, fields, features) or error from None
        yield row
    # An optional feature that one example lacks is missing there; one that none has is most likely misspelt.
    if absent and number >= 0:
        name = min(absent)
        raise DataError(f"{path}: no example has the feature {name!r}; {did_you_mean(name, column_names(path), 20)}")


def _misspelt(place: str, fields: Sequence[Field], features: Mapping[str, Any]) -> DataError | None:
    """Tell of a number that is not among an example's features, with the names that are."""
    for field in fields:
        needed = not field.optional and not field.several and field.dtype != "string"
        if needed and field.name not in features:
            hint = f"if it may be missing, set `optional: true` for the column {field.name!r}"
            told = f"{place}: has no feature {field.name!r}; {did_you_mean(field.name, features, 20)}"
            return DataError(told, hint=hint)
    return None
