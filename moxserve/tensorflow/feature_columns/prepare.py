"""A batch of a table as TensorFlow's columns take it: missing values, normalization, categories as sparse tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.tabular import columns as declared
from moxserve.tensorflow.executor.env import tf, tf1

if TYPE_CHECKING:
    from moxserve.tensorflow.feature_columns.columns import FeatureColumns

__all__ = ["Features", "Prepared"]

_SCOPE = "normalization"


class Prepared:
    """Tensors by keys of columns, made when a column asks for them.

    Args:
        columns: the declarations.
        inputs: key -> dense tensor.
        moments: mean and standard deviation by name, for columns with `fit`.

    Attributes:
        tensors: what TensorFlow's columns read, by key: `[batch, n] float32`, or sparse `[batch, values]`.
        keys: column -> key: its name, in letters that the name of a variable may have.
    """

    def __init__(
        self,
        columns: Mapping[str, declared.AnyColumn],
        inputs: Mapping[str, Any],
        moments: Mapping[str, tuple[Any, Any]],
    ) -> None:
        self.tensors: dict[str, Any] = {}
        self.keys = _keys(columns)
        self._columns = columns
        self._inputs = inputs
        self._moments = moments
        self._normalizers: dict[str, Callable[[Any], Any] | None] = {}
        self._presence: dict[str, Any] = {}

    def number(self, name: str) -> None:
        """Make `[batch, n] float32` of a numeric column, missing ones filled in, not normalized."""
        if self.keys[name] in self.tensors:
            return
        column = self._columns[name]
        if not isinstance(column, declared.Numeric):
            raise TypeError(f"{name} is of kind {column.kind}")
        raw = self._inputs[column.key or name]
        value = tf.cast(raw, tf.float32)
        if value.shape.rank == 1:
            value = value[:, tf.newaxis]
        try:
            value.set_shape([None, column.shape])
        except ValueError:
            raise UsageError(
                f"column {name!r} has shape {column.shape}; its input {column.key or name!r} is {raw.shape}"
            ) from None
        if column.missing is not None:
            if raw.dtype.is_integer:
                absent = tf.equal(raw if raw.shape.rank == 2 else raw[:, tf.newaxis], _missing_of(raw.dtype))
            else:
                absent = tf.math.is_nan(value)
            value = tf.where(absent, tf.constant(column.missing, tf.float32) * tf.ones_like(value), value)
        self.tensors[self.keys[name]] = value

    def number_again(self, name: str, other: str) -> int:
        """Give the tensor of a numeric column to another column, too.

        Returns:
            How many numbers a row has.
        """
        self.number(name)
        value = self.tensors[self.keys[other]] = self.tensors[self.keys[name]]
        return int(value.shape[1])

    def normalizer(self, name: str) -> Callable[[Any], Any] | None:
        """Return what normalizes a numeric column; None when nothing does."""
        if name not in self._normalizers:
            self._normalizers[name] = self._make_normalizer(name)
        return self._normalizers[name]

    def _make_normalizer(self, name: str) -> Callable[[Any], Any] | None:
        column = self._columns[name]
        if not isinstance(column, declared.Numeric):
            raise TypeError(f"{name} is of kind {column.kind}")
        if column.fit:
            mean, std = self._fitted(name, column.shape)
        elif column.mean is None and column.std is None:
            return None
        else:
            mean = tf.constant(0.0 if column.mean is None else column.mean, tf.float32)
            std = tf.constant(1.0 if column.std is None else column.std, tf.float32)
        return lambda value: (value - mean) / std

    def _fitted(self, name: str, shape: int) -> tuple[Any, Any]:
        """Make variables of the moments: a checkpoint carries them to evaluation and export."""
        mean, std = self._moments.get(name, (0.0, 1.0))
        # A column that never changes says nothing, and must not divide by zero.
        std = np.where(np.asarray(std) > 0, std, 1.0)
        with tf1.variable_scope(_SCOPE, reuse=tf1.AUTO_REUSE):
            made = [
                tf1.get_variable(
                    f"{self.keys[name]}/{what}",
                    initializer=np.broadcast_to(np.asarray(value, np.float32), [shape]).copy(),
                    trainable=False,
                )
                for what, value in (("mean", mean), ("std", std))
            ]
        return made[0], made[1]

    def category(self, name: str) -> None:
        """Make a sparse `[batch, values]` of a categorical column: its values without the missing ones."""
        if self.keys[name] in self.tensors:
            return
        column = self._columns[name]
        if not isinstance(column, (declared.Vocabulary, declared.Identity, declared.Hash)):
            raise TypeError(f"{name} is of kind {column.kind}")
        values = self._inputs[column.key or name]
        if values.dtype != tf.string:
            values = tf.cast(values, tf.int64)
        values = values[:, tf.newaxis] if values.shape.rank == 1 else values
        present = tf.not_equal(values, _missing_of(values.dtype))
        if column.missing is not None:
            # Only a row without any value is missing; what follows the values of a row is padding.
            empty = tf.logical_not(tf.reduce_any(present, axis=1, keepdims=True))
            first = tf.equal(tf.range(tf.shape(values)[1])[tf.newaxis, :], 0)
            fill = tf.logical_and(empty, first)
            values = tf.where(fill, tf.constant(column.missing, values.dtype), values)
            present = tf.logical_or(present, fill)
        if isinstance(column, declared.Identity) and column.default_value is None:
            # TensorFlow would give zeros in one place and an error in another.
            present = present & (values >= 0) & (values < column.buckets)
        self.tensors[self.keys[name]] = _sparse(values, present)
        self._presence[name] = present

    def weights(self, name: str, column: declared.Weighted) -> str:
        """Make the weights of a weighted column, one for each value that is there.

        Returns:
            The key that they have among the tensors.
        """
        key = f"{self.keys[name]}_weights"
        while key in self.keys.values():
            key += "_"
        if key not in self.tensors:
            present = self._presence[column.of]
            weights = tf.cast(self._inputs[column.weight], tf.float32)
            weights = weights[:, tf.newaxis] if weights.shape.rank == 1 else weights
            same = tf1.assert_equal(
                tf.shape(weights),
                tf.shape(present),
                message=f"{column.weight} has not one weight for each value of {column.of}",
            )
            with tf.control_dependencies([same]):
                self.tensors[key] = _sparse(tf.identity(weights), present)
        return key


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Return the names of columns as those of variables may be: plain letters, and no two the same."""
    keys: dict[str, str] = {}
    taken: set[str] = set()
    # Names that can stay as they are come first, whatever others would become.
    for name in sorted(names, key=lambda n: _plain(n) != n):
        key = plain = _plain(name)
        number = 0
        while key in taken:
            number += 1
            key = f"{plain}_{number}"
        keys[name] = key
        taken.add(key)
    return keys


def _plain(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return plain if plain[:1].isalnum() else f"c{plain}"


def _missing_of(dtype: Any) -> Any:
    """Return what stands for a missing value in a dense tensor of categories, as in TensorFlow's columns."""
    return "" if dtype == tf.string else -1


def _sparse(values: Any, present: Any) -> Any:
    indices = tf.where(present)
    return tf.SparseTensor(indices, tf.gather_nd(values, indices), tf.shape(values, out_type=tf.int64))


class Features:
    """The columns of one batch: what goes into a network, and what goes into a linear model.

    Args:
        columns: the declarations.
        prepared: the batch.
        builder: has `make(name)`, which gives TensorFlow's columns.
    """

    def __init__(self, columns: FeatureColumns, prepared: Prepared, builder: Any) -> None:
        self._columns = columns
        self._prepared = prepared
        self._builder = builder

    def dense(self, names: Iterable[str] | None = None) -> Any:
        """Return dense columns side by side: `[batch, width] float32`, sorted by the names of TensorFlow's columns.

        Embeddings are variables below the current variable scope, `input_layer/NAME_embedding/embedding_weights`.

        Args:
            names: numeric, bucketized, indicator and embedding columns; None for all that are.

        Raises:
            UsageError: there is no such column, it has no numbers, or there are none.
        """
        chosen = self._chosen(names, "dense part", lambda column: column.dense)
        with _quiet():
            return tf1.feature_column.input_layer(self._prepared.tensors, self._made(chosen))

    def linear(self, names: Iterable[str] | None = None, units: int = 1, combiner: str = "sum") -> Any:
        """Return a linear model of columns: `[batch, units] float32`, one weight for each category and number, and a
        bias.

        Weights are variables below the current variable scope, `linear_model/NAME/weights`; they begin with 0.

        Args:
            names: categorical and numeric columns; None for all that are.
            units: how many outputs.
            combiner: how the weights of several values of a category become one: sum, mean or sqrtn.

        Raises:
            UsageError: there is no such column, it is an indicator or embedding, or there are none.
        """
        chosen = self._chosen(names, "linear part", lambda column: column.categorical or column.kind == "numeric")
        made = self._made(chosen)
        try:
            with _quiet():
                return tf1.feature_column.linear_model(
                    self._prepared.tensors, made, units=units, sparse_combiner=combiner
                )
        except ValueError as error:  # such as two crosses of the same columns, which have one name
            raise UsageError(f"the linear part cannot be made: {error}") from error

    def _chosen(self, names: Iterable[str] | None, part: str, fits: Callable[[Any], bool]) -> list[str]:
        if names is None:
            names = [name for name, column in self._columns.columns.items() if fits(column)]
        chosen = self._columns.check(names, part, fits)
        if not chosen:
            raise UsageError(f"the {part} has no columns")
        return chosen

    def _made(self, names: Iterable[str]) -> list[Any]:
        return [made for name in dict.fromkeys(names) for made in self._builder.make(name)]


class _quiet(warnings.catch_warnings):  # noqa: N801 - reads as a verb
    """No warnings of the layers that TensorFlow builds its linear model of."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", "`layer.add_variable`", UserWarning)
        return entered
