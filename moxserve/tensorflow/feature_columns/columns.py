"""Declarations as TensorFlow's own feature columns, and the spec that parses their inputs from tf.Examples."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tabular import columns as declared
from moxserve.tabular.declared import input_keys, read_columns, read_vocabulary
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.feature_columns.prepare import Features, Prepared

__all__ = ["FeatureColumns", "feature_columns"]


def feature_columns(config: Mapping[str, Any] | str | os.PathLike[str]) -> FeatureColumns:
    """Read declarations of columns; see `moxserve.tabular.columns` for their kinds.

    Args:
        config: name -> column, a mapping with the key `kind`; or a YAML file of such.

    Raises:
        UsageError: a declaration is wrong, or they do not go together; every problem with its key.
    """
    return FeatureColumns(read_columns(config))


class FeatureColumns:
    """Columns, checked, in no graph yet.

    Args:
        columns: name -> declaration, as `read_columns` gives them.
    """

    def __init__(self, columns: Mapping[str, declared.AnyColumn]) -> None:
        self.columns = dict(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, in their order."""
        return tuple(self.columns)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Columns whose mean and standard deviation are those of the training rows."""
        return tuple(n for n, c in self.columns.items() if isinstance(c, declared.Numeric) and c.fit)

    def inputs(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Return the inputs that columns read: key -> `float32`, `int64` or `string`.

        Args:
            names: only what these columns need; None for all.

        Raises:
            UsageError: there is no such column.
        """
        return input_keys(self.columns, None if names is None else self.check(names))

    def example_spec(self, names: Iterable[str] | None = None, several: Collection[str] = ()) -> dict[str, Any]:
        """Return how the inputs are parsed from tf.Examples: for `tf.io.parse_example` and `mox.ExportSpec`.

        What is missing in an example becomes what `prepare` takes for missing. A number without `missing` is required.

        Args:
            names: only what these columns need; None for all.
            several: inputs of categories that hold several values a row: `[batch, most values]`, padded. Others hold
                one: `[batch]`.
        """
        chosen = self.inputs(names)
        known = {key: column for name, column in self.columns.items() if (key := _number_key(name, column))}
        weights = {c.weight for c in self.columns.values() if isinstance(c, declared.Weighted)}
        spec: dict[str, Any] = {}
        for key, dtype in chosen.items():
            padding = _PADDING[dtype]
            if key in weights and dtype == "float32":
                padding = 0.0
            if key in several:
                spec[key] = tf.io.FixedLenSequenceFeature(
                    [], tf.as_dtype(dtype), allow_missing=True, default_value=padding
                )
            elif dtype == "float32" and key in known:
                spec[key] = _number_feature(known[key])
            else:
                spec[key] = tf.io.FixedLenFeature([], tf.as_dtype(dtype), default_value=padding)
        return spec

    def prepare(
        self, inputs: Mapping[str, Any], moments: Mapping[str, tuple[Any, Any]] | None = None, training: bool = False
    ) -> Features:
        """Take the tensors of a batch; in the current graph.

        Args:
            inputs: key -> tensor, dense: `[batch]` with a value a row or `[batch, values]`; numbers of any type where
                numbers are read. More than what is needed may be there.
            moments: mean and standard deviation of the training rows, by name of the columns with `fit`; needed in
                training, where a checkpoint has none yet.
            training: whether embeddings begin with their `checkpoint`.

        Raises:
            UsageError: an input that a column needs is missing, or has another type.
        """
        for key, dtype in self.inputs().items():
            if key not in inputs:
                readers = [n for n in self.names if key in self.inputs([n])]
                raise UsageError(f"column {readers[0]!r} reads the input {key!r}; {did_you_mean(key, inputs)}")
            if (dtype == "string") != (inputs[key].dtype == tf.string):
                raise UsageError(f"input {key!r} is {inputs[key].dtype.name}; its column reads {dtype}")
        prepared = Prepared(self.columns, inputs, moments or {})
        for name in self.fitted:  # here, and not in the scope of the part that happens to come first
            prepared.normalizer(name)
        return Features(self, prepared, _Builder(self.columns, prepared, training))

    def check(self, names: Iterable[str], part: str = "", fits: Callable[[Any], bool] | None = None) -> list[str]:
        """Return names of columns as a list.

        Args:
            names: of columns.
            part: what they are for, for the message.
            fits: tells whether a column can be used for it.

        Raises:
            UsageError: there is no such column, or it does not fit.
        """
        found = list(names)
        for name in found:
            if name not in self.columns:
                raise UsageError(f"no column {name!r}; {did_you_mean(name, self.names)}")
            if fits is not None and not fits(self.columns[name]):
                raise UsageError(
                    f"column {name!r} is of kind {self.columns[name].kind}, which is nothing for the {part}",
                    hint="make an indicator or embedding of it" if self.columns[name].categorical else None,
                )
        return found


_PADDING: Mapping[str, Any] = {"float32": math.nan, "int64": -1, "string": ""}


def _number_key(name: str, column: declared.AnyColumn) -> str:
    return (column.key or name) if isinstance(column, declared.Numeric) else ""


def _number_feature(column: declared.AnyColumn) -> Any:
    shape = [] if not isinstance(column, declared.Numeric) or column.shape == 1 else [column.shape]
    if isinstance(column, declared.Numeric) and column.missing is None:
        return tf.io.FixedLenFeature(shape, tf.float32)
    count = column.shape if isinstance(column, declared.Numeric) else 1
    return tf.io.FixedLenFeature(shape, tf.float32, default_value=[math.nan] * count if shape else math.nan)


class _Builder:
    """Makes TensorFlow's columns, each once.

    Args:
        columns: the declarations.
        prepared: the tensors, whose keys are the columns' names.
        training: whether embeddings begin with their checkpoint.
    """

    def __init__(self, columns: Mapping[str, declared.AnyColumn], prepared: Prepared, training: bool) -> None:
        self._columns = columns
        self._prepared = prepared
        self._training = training
        self._made: dict[str, list[Any]] = {}

    def make(self, name: str) -> list[Any]:
        """Return the columns of a name: one, or of a shared embedding several."""
        if name not in self._made:
            column = self._columns[name]
            made = getattr(self, f"_{column.kind}")(name, column)
            self._made[name] = made if isinstance(made, list) else [made]
        return self._made[name]

    def _key(self, name: str) -> str:
        return self._prepared.keys[name]

    def _one(self, name: str) -> Any:
        return self.make(name)[0]

    def _numeric(self, name: str, column: declared.Numeric) -> Any:
        self._prepared.number(name)
        return tf.feature_column.numeric_column(
            self._key(name), shape=(column.shape,), normalizer_fn=self._prepared.normalizer(name)
        )

    def _bucketized(self, name: str, column: declared.Bucketized) -> Any:
        # Not of the numeric column itself: ranges are of numbers as they are read, and two bucketized columns of one
        # numeric column would have one name.
        shape = self._prepared.number_again(column.of, name)
        numbers = tf.feature_column.numeric_column(self._key(name), shape=(shape,))
        return tf.feature_column.bucketized_column(numbers, column.boundaries)

    def _vocabulary(self, name: str, column: declared.Vocabulary) -> Any:
        self._prepared.category(name)
        values = read_vocabulary(column)
        common = {
            "dtype": tf.as_dtype(column.value_dtype),
            "default_value": -1 if column.default_value is None else column.default_value,
            "num_oov_buckets": column.oov_buckets,
        }
        if column.oov_buckets:
            del common["default_value"]
        if column.file is None:
            return tf.feature_column.categorical_column_with_vocabulary_list(self._key(name), values, **common)
        if column.default_value is not None and column.default_value >= len(values):
            raise UsageError(f"{name}: default_value is {column.default_value}; {column.file} has {len(values)} values")
        common["default_value"] = common.get("default_value")
        return tf.feature_column.categorical_column_with_vocabulary_file(
            self._key(name), column.file, len(values), **common
        )

    def _identity(self, name: str, column: declared.Identity) -> Any:
        self._prepared.category(name)
        return tf.feature_column.categorical_column_with_identity(self._key(name), column.buckets, column.default_value)

    def _hash(self, name: str, column: declared.Hash) -> Any:
        self._prepared.category(name)
        return tf.feature_column.categorical_column_with_hash_bucket(
            self._key(name), column.buckets, dtype=tf.as_dtype(column.dtype)
        )

    def _crossed(self, name: str, column: declared.Crossed) -> Any:
        keys = []
        for source in column.of:
            made = self._one(source)
            # A hash of hashes would throw values together twice, so TensorFlow takes what was to be hashed.
            keys.append(self._key(source) if isinstance(self._columns[source], declared.Hash) else made)
        return tf.feature_column.crossed_column(keys, column.buckets, hash_key=column.hash_key)

    def _weighted(self, name: str, column: declared.Weighted) -> Any:
        made = self._one(column.of)
        return tf.feature_column.weighted_categorical_column(made, self._prepared.weights(name, column))

    def _indicator(self, name: str, column: declared.Indicator) -> Any:
        return tf.feature_column.indicator_column(self._one(column.of))

    def _embedding(self, name: str, column: declared.Embedding) -> Any:
        return tf.feature_column.embedding_column(self._one(column.of), **self._vectors(column))

    def _shared_embedding(self, name: str, column: declared.SharedEmbedding) -> list[Any]:
        sources = [self._one(source) for source in column.of]
        try:
            made = tf1.feature_column.shared_embedding_columns(
                sources, shared_embedding_collection_name=self._key(name), **self._vectors(column)
            )
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        return list(made)

    def _vectors(self, column: declared.Embedding | declared.SharedEmbedding) -> dict[str, Any]:
        begins = self._training and column.checkpoint is not None
        return {
            "dimension": column.dimension,
            "combiner": column.combiner,
            "initializer": _initializer(column),
            # Evaluation and export take the vectors from the model's own checkpoint.
            "ckpt_to_load_from": column.checkpoint if begins else None,
            "tensor_name_in_ckpt": column.tensor if begins else None,
            "max_norm": column.max_norm,
            "trainable": column.trainable,
        }


def _initializer(column: declared.Embedding | declared.SharedEmbedding) -> Any:
    scale = 1 / math.sqrt(column.dimension) if column.scale is None else column.scale
    makers: Mapping[str, Callable[[], Any]] = {
        "truncated_normal": lambda: tf1.truncated_normal_initializer(0.0, scale),
        "normal": lambda: tf1.random_normal_initializer(0.0, scale),
        "uniform": lambda: tf1.random_uniform_initializer(-scale, scale),
        "zeros": tf1.zeros_initializer,
    }
    return makers[column.initializer]()
