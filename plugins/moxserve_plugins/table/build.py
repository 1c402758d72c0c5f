"""Batches of rows of tables that are held in memory, as arrays of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle, ParameterError
from moxserve.tabular.cells import MISSING
from moxserve.tabular.table import Table, class_indices, moments, read_table, split_table
from moxserve_plugins.inputs import batch_rows
from moxserve_plugins.table.config import LABEL, WEIGHT

if TYPE_CHECKING:
    from moxserve_plugins.table.config import Table as Config

__all__ = ["bundle"]

# More than a model can have; what a table numbers beyond it is an identifier.
_MOST_CLASSES = 1_000_000
_PARTS = {"TRAIN": "train", "EVAL": "eval", "PREDICT": "eval"}


def bundle(config: Config) -> InputBundle:
    """Read the tables and return the input: a tensor for each column, `[batch]`, or `[batch, values]` where rows have
    several; then `label` `[batch]`, int64 or float32, and `sample_weight` `[batch] float32`, if there are such.

    Raises:
        DataError: a file, cell or label is wrong.
    """
    tables = _tables(config)
    labels = _labels(config, tables)
    parts = {part: _arrays(config, table, labels) for part, table in tables.items()}

    def input_fn(mode: str, **_: Any) -> Any:
        part = _PARTS[mode]
        if part not in parts:
            raise DataError(f"no rows for {mode}: input.{part} is not set")
        return _batches(config, mode, list(parts[part].values()))

    return InputBundle(
        input_fn=input_fn,
        names=tuple(next(iter(parts.values()))),
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        labels=tuple(labels) if labels is not None else None,
        num_samples={mode: len(tables[part]) for mode, part in _PARTS.items() if part in tables},
        row_names={mode: tables[part].places for mode, part in _PARTS.items() if part in tables},
        moments=lambda name: _moments(config, tables, name),
        missing=_missing(config, tables),
    )


def _tables(config: Config) -> dict[str, Table]:
    read = {
        part: read_table(config.files(part), config.fields(), config.csv.style(), config.format)
        for part in ("train", "eval")
        if config.files(part)
    }
    if config.split is None:
        return read
    train, evaluation = split_table(read["train"], config.split, config.split_seed)
    return {"train": train, "eval": evaluation}


def _labels(config: Config, tables: dict[str, Table]) -> list[str] | None:
    """Return the class names: given, found in the training rows, or the numbers as text; None for a regression."""
    if config.label is None or config.label_dtype == "float32":
        return None
    given = config.class_names()
    first = tables.get("train") or tables["eval"]
    values = first.columns[config.label]
    if config.label_dtype == "int64":
        return given or _numbers(config, first)
    # A row without a class is told of with its place, where its class is looked up.
    return given or sorted({value.decode("utf-8", "backslashreplace") for value in values} - {""})


def _numbers(config: Config, table: Table) -> list[str]:
    values = table.columns[str(config.label)]
    row = int(values.argmax())
    if values[row] >= _MOST_CLASSES:
        raise DataError(
            f"{table.places[row]}: column {config.label!r} is {values[row]}; expected the number of a class, from 0",
            hint="for a number to predict set `label_dtype: float32`; or name the classes with `labels`",
        )
    return [str(number) for number in range(int(values[row]) + 1)]


def _arrays(config: Config, table: Table, labels: Sequence[str] | None) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {name: table.columns[name] for name in config.columns}
    if config.label is not None:
        arrays[LABEL] = _label_array(config, table, labels)
    if config.weight is not None:
        weights = table.columns[config.weight].astype(np.float32)
        if (weights < 0).any():
            row = int(np.argmax(weights < 0))
            raise DataError(f"{table.places[row]}: column {config.weight!r} is a weight and below 0: {weights[row]:g}")
        arrays[WEIGHT] = weights
    return arrays


def _label_array(config: Config, table: Table, labels: Sequence[str] | None) -> np.ndarray:
    column = str(config.label)
    values = table.columns[column]
    if config.label_dtype == "string":
        return class_indices(table, column, labels or ())
    wrong = (values < 0) | (values >= len(labels)) if labels is not None else np.zeros(len(values), bool)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table.places[row]}: column {column!r} is {values[row]}; expected a class, 0 to {len(labels or ()) - 1}"
        )
    return values


def _missing(config: Config, tables: dict[str, Table]) -> dict[str, str]:
    """Return the place of the first row that lacks a number, by column."""
    found: dict[str, str] = {}
    for name, column in config.columns.items():
        # In the others -1 is a number, and NaN was refused.
        if column.dtype == "string" or not (column.optional or column.several):
            continue
        for table in tables.values():
            values = table.columns[name]
            absent = np.isnan(values) if column.dtype == "float32" else values == MISSING[column.dtype]
            rows = absent.reshape(len(table), -1).any(axis=1)
            if rows.any():
                found.setdefault(name, table.places[int(rows.argmax())])
    return found


def _batches(config: Config, mode: str, arrays: Sequence[np.ndarray]) -> Any:
    import tensorflow as tf

    from moxserve.tensorflow.executor.python_calls import python_function

    dtypes = [tf.string if array.dtype == object else tf.as_dtype(array.dtype) for array in arrays]

    def take(numbers: np.ndarray) -> list[np.ndarray]:
        return [array[numbers] for array in arrays]

    # The arrays stay where they are: a batch is a copy of its rows only.
    def rows(numbers: Any) -> tuple[Any, ...]:
        found = python_function(take, [numbers], dtypes, stateful=False)
        for tensor, array in zip(found, arrays, strict=True):
            tensor.set_shape([numbers.shape[0], *array.shape[1:]])
        return tuple(found)

    return batch_rows(config, mode, len(arrays[0]), lambda batches: batches.map(rows))


def _moments(config: Config, tables: dict[str, Table], name: str) -> tuple[Any, Any]:
    if "train" not in tables:
        raise ParameterError("input.train", f"is needed: the mean of {name!r} is that of the training rows")
    return moments(tables["train"].columns[name], config.columns[name].dtype)
