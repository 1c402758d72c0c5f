"""Rows of CSV files, a column for each input, and of TFRecord files, for signatures that take tf.Examples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from moxserve.client.calls import Array
from moxserve.client.fit import fit_tensor
from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.predict.readers import LABEL_KEYS, Label, Row, Rows, label_key, row_spec, to_label
from moxserve.protocol.examples import parse_example, read_examples
from moxserve.tabular.cells import CellError, Field, column_array
from moxserve.tabular.files import CsvFormat, csv_table, from_cell
from moxserve.types import Signature, TensorSpec

__all__ = ["open_csv", "open_examples"]

_STYLE = CsvFormat()


def open_csv(path: str, signature: Signature, label: str | None = None) -> Rows:
    """Open a CSV file whose first line names the columns; those that are neither inputs nor the label are left out.

    An empty cell is a missing value: NaN, -1 or empty text. A cell of an input with several values a row holds them
    with `|` between.

    Args:
        path: the file.
        signature: what the rows are made for.
        label: column of the labels; None: `label` or `labels`, if there is one.

    Raises:
        DataError: an input or the label has no column.
        UsageError: an input is no number or text a row, nor a list of them.
    """
    fields = {name: _field(spec) for name, spec in signature.inputs.items()}
    names, lines = csv_table(path, _STYLE)
    for name in fields:
        if name not in names:
            raise DataError(
                f"{path} has no column {name!r}; {did_you_mean(name, names, 20)}", hint=f"expected {signature}"
            )
    key = label_key(names, signature, label, path)
    place = names.index(key) if key is not None else len(names)
    base = os.path.basename(path)

    def rows() -> Iterator[Row]:
        for line, cells in lines:
            told = Label(name=cells[place]) if place < len(cells) and cells[place] else None
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
    found = from_cell(text, field, _STYLE)
    value: Any = column_array([found], field)[0]
    if field.several:
        value = value[: len(found)]
    if spec.dtype.name != "string":
        value = np.asarray(value).astype(spec.dtype.numpy)
    return fit_tensor(value, row_spec(spec))


def open_examples(path: str, signature: Signature, label: str | None = None) -> Rows:
    """Open a TFRecord file of serialized tf.Examples, for a signature that takes them.

    Args:
        path: the file.
        signature: what the rows are made for.
        label: feature of the labels; None: `label` or `labels`. An example without it has no label.

    Raises:
        DataError: the first example has no such feature.
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
    if label is not None:
        label_key(next(read_examples(path), {}), signature, label, path)
    keys = LABEL_KEYS if label is None else (label,)

    def rows() -> Iterator[Row]:
        for number, payload in enumerate(read_records(path)):
            yield Row(f"{base}[{number}]", partial(_example, name, payload), _example_label(payload, keys))

    return Rows("tf.Examples", rows())


def _example_label(payload: bytes, keys: Sequence[str]) -> Label | None:
    try:
        features = parse_example(payload)
    except DataError:  # the model says what it cannot parse, as a row that fails
        return None
    found = next((features[key] for key in keys if key in features), None)
    return to_label(found[0]) if found is not None and len(found) == 1 else None


def _example(name: str, payload: bytes) -> Mapping[str, Array]:
    value = np.empty((), object)
    value[()] = payload
    return {name: value}
