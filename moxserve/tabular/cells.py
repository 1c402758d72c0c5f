"""Cells of a table: what a column holds, and how text and other values become it.

float32: NaN is missing. int64: -1 is missing. string: UTF-8 bytes, empty is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from moxserve.errors import DataError

__all__ = ["DTYPES", "MISSING", "CellError", "Field", "column_array", "from_text", "from_value"]

DTYPES: Mapping[str, Any] = {"float32": np.float32, "int64": np.int64, "string": object}
MISSING: Mapping[str, Any] = {"float32": math.nan, "int64": -1, "string": b""}
_INT64 = np.iinfo(np.int64)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Field:
    """A column that is read.

    Attributes:
        name: as in the file.
        dtype: `float32`, `int64` or `string`.
        optional: whether a number may be missing. Text always may: empty text is missing text.
        several: whether a row has any number of values.
    """

    name: str
    dtype: str = "float32"
    optional: bool = False
    several: bool = False


class CellError(DataError):
    """A cell does not hold what its column should; who reads the file adds the place."""


def from_text(text: str, field: Field, missing: Sequence[str] = ("",)) -> Any:
    """Read one value from text.

    Args:
        text: as it stands in the file, without quotes.
        field: of the column.
        missing: texts that stand for no value.

    Raises:
        CellError: it is no such value, or missing where it must not be.
    """
    if text in missing:
        return _missing(field)
    return _FROM_TEXT[field.dtype](text, field)


def _missing(field: Field) -> Any:
    if not field.optional and field.dtype != "string" and not field.several:
        raise CellError("is missing", hint=f"fill it in, or set `optional: true` for the column {field.name!r}")
    return MISSING[field.dtype]


def _text(text: str, _: Field) -> bytes:
    return text.encode()


def _float(text: str, field: Field) -> float:
    try:
        # Python also reads 1_000, which nobody means in a table.
        value = float("" if "_" in text else text)
    except ValueError:
        raise CellError(f"expected a number, got {_cut(text)}") from None
    return _checked_float(value, field, text)


def _checked_float(value: float, field: Field, text: Any) -> float:
    if math.isnan(value):
        return float(_missing(field))
    if not abs(value) <= _FLOAT32_MAX:
        raise CellError(f"expected a finite float32 number, got {_cut(text)}")
    return value


def _int(text: str, _: Field) -> int:
    try:
        return _checked_int(int("" if "_" in text else text), text)
    except ValueError:
        pass
    try:
        # `3.0`, as tables write whole numbers when one of them is missing. A float would round what has over 53 bits.
        return _checked_int(Decimal("" if "_" in text else text), text)
    except (ArithmeticError, ValueError):
        raise CellError(f"expected a whole number, got {_cut(text)}") from None


def _checked_int(value: Any, text: Any) -> int:
    if math.isnan(value) or math.isinf(value):
        raise CellError(f"expected a whole number, got {_cut(text)}")
    # Before it is made an int: of 1e999999999 that takes forever.
    if not _INT64.min <= value <= _INT64.max:
        raise CellError(f"expected a whole number of 64 bits, got {_cut(text)}")
    if int(value) != value:
        raise CellError(f"expected a whole number, got {_cut(text)}")
    return int(value)


_FROM_TEXT: Mapping[str, Callable[[str, Field], Any]] = {"float32": _float, "int64": _int, "string": _text}


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def from_value(value: Any, field: Field) -> Any:
    """Take one value that has a type already: of Parquet, a tf.Example or JSON.

    Raises:
        CellError: it is of another type, or missing where it must not be.
    """
    if value is None:
        return _missing(field)
    if isinstance(value, (str, bytes)):
        if field.dtype != "string":
            raise CellError(f"expected a number, got {_cut(value)}")
        return value.encode() if isinstance(value, str) else value
    if field.dtype == "string" or not isinstance(value, (bool, int, float, Decimal, np.generic)):
        raise CellError(f"expected {'text' if field.dtype == 'string' else 'a number'}, got {_cut(value)}")
    if field.dtype == "float32":
        return _checked_float(float(value), field, value)
    if math.isnan(value):
        return _missing(field)
    return _checked_int(value, value)


def column_array(values: Sequence[Any], field: Field) -> npt.NDArray[Any]:
    """Make the array of a column.

    Args:
        values: one a row; of a column with several values a list a row.
        field: of the column.

    Returns:
        `[rows]`, or `[rows, most values]` padded with what stands for missing.
    """
    dtype = DTYPES[field.dtype]
    if not field.several:
        array = np.empty(len(values), dtype)
        array[:] = values
        return array
    width = max((len(row) for row in values), default=0) or 1
    array = np.full((len(values), width), MISSING[field.dtype], dtype)
    for number, row in enumerate(values):
        array[number, : len(row)] = row
    return array
