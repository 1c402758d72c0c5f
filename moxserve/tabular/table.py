"""A table in memory: its columns as arrays, its rows with their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moxserve.errors import DataError, did_you_mean
from moxserve.tabular.cells import MISSING, Field, column_array
from moxserve.tabular.files import CsvFormat, read_rows

__all__ = ["Table", "class_indices", "moments", "read_table", "split_table"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Columns of the same rows.

    Attributes:
        columns: name -> `[rows]`, or `[rows, most values]` padded: float32, int64, or bytes objects.
        places: where each row is from, such as `train.csv:12`.
    """

    columns: Mapping[str, Array]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Array) -> Table:
        """Return the table of some rows.

        Args:
            rows: their numbers, `[n] int64`.
        """
        return Table({name: column[rows] for name, column in self.columns.items()}, [self.places[i] for i in rows])


def read_table(
    paths: Sequence[str], fields: Sequence[Field], style: CsvFormat | None = None, told: str | None = None
) -> Table:
    """Read files, one after the other.

    Args:
        paths: the files.
        fields: columns to read.
        style: of CSV files.
        told: the format, where the suffixes do not tell it.

    Raises:
        DataError: a file cannot be read, lacks a column, or has a wrong cell; or there are no rows.
    """
    places: list[str] = []
    chunks: list[list[Array]] = []
    for path in paths:
        for chunk in read_rows(path, fields, style, told):
            places += [place for place, _ in chunk]
            values = zip(*(row for _, row in chunk), strict=True)
            chunks.append([column_array(column, field) for column, field in zip(values, fields, strict=True)])
    if not places:
        raise DataError(f"no rows in {', '.join(paths)}")
    parts = zip(*chunks, strict=True)
    return Table({field.name: _joined(part, field) for part, field in zip(parts, fields, strict=True)}, places)


def _joined(parts: Sequence[Array], field: Field) -> Array:
    if not field.several:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    padded = [
        np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=MISSING[field.dtype]) for part in parts
    ]
    return np.concatenate(padded)


def split_table(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """Split rows at random, the same way each time; both parts keep the order of the rows.

    Args:
        table: of all rows.
        share: of the second part; at least one row goes into each.
        seed: of the choice.

    Raises:
        DataError: there are less than two rows.
    """
    rows = len(table)
    if rows < 2:
        raise DataError(f"{rows} row(s) cannot be split into training and evaluation")
    count = min(max(1, round(rows * share)), rows - 1)
    order = np.random.default_rng(seed).permutation(rows)
    return table.take(np.sort(order[count:])), table.take(np.sort(order[:count]))


def class_indices(table: Table, column: str, labels: Sequence[str]) -> Array:
    """Turn names of classes into their places in a list: `[rows] int64`.

    Raises:
        DataError: a name is not in the list; with the row's place.
    """
    index = {label.encode(): number for number, label in enumerate(labels)}
    values = table.columns[column]
    found = np.fromiter((index.get(value, -1) for value in values), np.int64, len(values))
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        name = values[row].decode("utf-8", "backslashreplace")
        raise DataError(f"{table.places[row]}: column {column!r} is {name!r}, no class; {did_you_mean(name, labels)}")
    return found


def moments(values: Array, dtype: str) -> tuple[Array, Array]:
    """Return mean and standard deviation of a column over its rows, missing values left out.

    Args:
        values: `[rows]` or `[rows, n]` numbers.
        dtype: `float32` or `int64`; says what stands for missing.

    Returns:
        Two scalars, or two arrays `[n]`; 0 and 1 where every value is missing.
    """
    numbers = values.astype(np.float64)
    absent = np.isnan(numbers) if dtype == "float32" else values == MISSING[dtype]
    kept = np.ma.masked_array(numbers, absent)
    return np.ma.filled(kept.mean(axis=0), 0.0), np.ma.filled(kept.std(axis=0), 1.0)
