"""Rows of CSV files, a column for each input, and of TFRecord files, for signatures that take tf.Examples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from moxserve.client.calls import Array
from moxserve.client.fit import fit_tensor
from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.predict.readers import Label, Row, Rows, row_spec
from moxserve.tabular.cells import CellError, Field, column_array, from_text
from moxserve.tabular.files import CsvFormat, csv_rows
from moxserve.types import Signature, TensorSpec

__all__ = ["open_csv", "open_examples"]

_STYLE = CsvFormat()


def open_csv(path: str, signature: Signature) -> Rows:
    """Open a CSV file whose first line names the columns; those that are no inputs are left out.

    An empty cell is a missing value: NaN, -1 or empty text. A cell of an input with several values a row holds them
    with `|` between.

    Raises:
        DataError: an input has no column.
        UsageError: an input is no number or text a row, nor a list of them.
    """
    fields = {name: _field(spec) for name, spec in signature.inputs.items()}
    lines = csv_rows(path, _STYLE)
    first = next(lines, None)
    names = [name.strip() for name in first[1]] if first is not None else []
    for name in fields:
        if name not in names:
            raise DataError(
                f"{path} has no column {name!r}; {did_you_mean(name, names, 20)}", hint=f"expected {signature}"
            )
    label = next((names.index(key) for key in ("label", "labels") if key in names and key not in fields), None)
    base = os.path.basename(path)

    def rows() -> Iterator[Row]:
        for line, cells in lines:
            told = Label(name=cells[label]) if label is not None and label < len(cells) and cells[label] else None
            yield Row(f"{base}:{line}", partial(_load, f"{base}:{line}", names, cells, fields, signature), told)

    return Rows("a CSV table", rows())


def _field(spec: TensorSpec) -> Field:
    row = row_spec(spec)
    rank = 0 if row.shape is None else len(row.shape)
    if rank > 1 or row.dtype.name.startswith("complex"):
        raise UsageError(f"input {spec} is no number or text a row", hint="give the rows as .npz or .jsonl")
    kind = "string" if row.dtype.name == "string" else "float32" if "float" in row.dtype.name else "int64"
    return Field(spec.name, kind, optional=True, several=rank == 1)


def _load(
    where: str, names: list[str], cells: list[str], fields: Mapping[str, Field], signature: Signature
) -> Mapping[str, Array]:
    if len(cells) != len(names):
        raise DataError(f"{where}: has {len(cells)} cells; expected {len(names)}")
    found = {}
    for name, field in fields.items():
        position = names.index(name)
        try:
            found[name] = _value(cells[position], field, signature.inputs[name])
        except (CellError, UsageError) as error:
            raise DataError(f"{where}:{position + 1}: column {name!r}: {error.message}") from None
    return found


def _value(text: str, field: Field, spec: TensorSpec) -> Array:
    if field.several:
        parts = [from_text(part, field) for part in text.split(_STYLE.separator)] if text else []
        value: Any = column_array([parts], field)[0, : len(parts)]
    else:
        value = column_array([from_text(text, field)], field)[0]
    if spec.dtype.name != "string":
        value = np.asarray(value).astype(spec.dtype.numpy)
    return fit_tensor(value, row_spec(spec))


def open_examples(path: str, signature: Signature) -> Rows:
    """Open a TFRecord file of serialized tf.Examples, for a signature that takes them.

    Raises:
        UsageError: the signature has other inputs than one of strings.
    """
    from moxserve.protocol.tfrecord import read_records

    specs = list(signature.inputs.values())
    if len(specs) != 1 or specs[0].dtype.name != "string":
        raise UsageError(
            f"{path} holds tf.Examples; signature {signature.name!r} takes {', '.join(map(str, specs))}",
            hint="choose a signature that takes tf.Examples, such as --signature classify or --signature predict",
        )
    name, base = specs[0].name, os.path.basename(path)

    def rows() -> Iterator[Row]:
        for number, payload in enumerate(read_records(path)):
            yield Row(f"{base}[{number}]", partial(_example, name, payload))

    return Rows("tf.Examples", rows())


def _example(name: str, payload: bytes) -> Mapping[str, Array]:
    value = np.empty((), object)
    value[()] = payload
    return {name: value}
