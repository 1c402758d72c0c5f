"""What all data sets share: rows in an order, items by name, tensors or a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from moxserve.dataflow.order import EpochOrder
from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.position import INPUT_COUNTS_STEPS, INPUT_POSITIONS
from moxserve.tensorflow.executor.python_calls import python_function
from moxserve.tensorflow.executor.skipped import SkippedRows

__all__ = [
    "INPUT_COUNTS_STEPS",
    "INPUT_POSITIONS",
    "BaseDataset",
    "input_position",
    "numbered_batches",
    "numbered_rows",
    "ordered_rows",
    "rows_left",
]

_FOR_EVER = 1 << 62
_ROWS_AT_ONCE = 256


def input_position(default: Any = 0, skipped: SkippedRows | None = None) -> Any:
    """Return a scalar `int64` of the current graph: how many rows this worker has been given before; see
    `executor.position`.

    Args:
        default: the value where nobody feeds another. A tensor is the position: nobody feeds it.
        skipped: notes the rows that are left out, where some may be.
    """
    if tf.is_tensor(default):
        return tf.cast(default, tf.int64)
    value = tf.constant(default, tf.int64)
    if tf1.executing_eagerly():
        return value
    position = tf1.placeholder_with_default(value, [], "input_position")
    tf1.add_to_collection(INPUT_POSITIONS, position)
    if skipped is not None:
        skipped.attach(position)
    return position


def numbered_batches(
    order: EpochOrder, epochs: int | None, size: int, start: Any = 0, skipped: SkippedRows | None = None
) -> Any:
    """Return a `tf.data.Dataset` of pairs `(positions, rows)`, each `[n] int64`, in the current graph.

    The position counts the rows that this worker is given over all epochs, from 0: with a seed, it names what is drawn
    for a row of an epoch, also after a run went on.

    Args:
        order: which rows, in which order.
        epochs: how often; None for no end.
        size: rows of an element, over the ends of epochs; the last one may have fewer.
        start: the position to start at, as `input_position` takes it.
        skipped: notes the rows that are left out, where some may be.
    """
    end = (_FOR_EVER if epochs is None else epochs * order.rows) if order.rows else 0
    epoch = lru_cache(maxsize=2)(order.epoch)  # elements are asked for in order

    def part(first: Any) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(first, min(first + size, end), dtype=np.int64)
        numbers, places = np.divmod(positions, order.rows)
        return positions, np.concatenate([epoch(int(n))[places[numbers == n]] for n in np.unique(numbers)])

    def element(first: Any) -> tuple[Any, Any]:
        positions, rows = python_function(part, [first], (tf.int64, tf.int64), stateful=False)
        positions.set_shape([None])
        rows.set_shape([None])
        return positions, rows

    batches = tf.data.Dataset.range(input_position(start, skipped), end, size).map(element)
    if epochs is None and end:
        batches = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return batches


def numbered_rows(order: EpochOrder, epochs: int | None, start: Any = 0, skipped: SkippedRows | None = None) -> Any:
    """Return what `numbered_batches` returns as pairs `(position, row)` of scalars; batches cost a tenth of it."""
    position = input_position(start, skipped)
    rows = numbered_batches(order, epochs, _ROWS_AT_ONCE, position).unbatch()
    return rows.apply(tf.data.experimental.assert_cardinality(rows_left(order, epochs, position)))


def rows_left(order: EpochOrder, epochs: int | None, position: Any) -> Any:
    """Return how many rows come from a position on, as `tf.data` counts elements: a scalar `int64` tensor."""
    if epochs is None:
        return tf.constant(tf.data.INFINITE_CARDINALITY, tf.int64)
    return tf.maximum(tf.constant(epochs * order.rows, tf.int64) - position, 0)


def ordered_rows(order: EpochOrder, epochs: int | None) -> Any:
    """Return a `tf.data.Dataset` of row numbers, `int64` scalars, in the current graph.

    A run that goes on starts it where it was: the position is in the collection `INPUT_POSITIONS`.

    Args:
        order: which rows, in which order.
        epochs: how often; None for no end.
    """
    return numbered_rows(order, epochs).map(lambda _, row: row)


class BaseDataset:
    """Items by name over a `tf.data.Dataset`.

    Args:
        dataset: of dicts name -> tensor; one sample each, or one batch.
        finish: what is still computed on the tensors of an element, outside the input pipeline and so on the device
            that the model is on; takes and returns a dict.
    """

    def __init__(self, dataset: Any, finish: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None) -> None:
        self._dataset = dataset
        self._finish = finish
        self._element: Mapping[str, Any] | None = None
        self._iterator: Any = None

    @property
    def items(self) -> tuple[str, ...]:
        """The names that `get` knows."""
        return tuple(self._dataset.element_spec)

    def get(self, items: Sequence[str]) -> list[Any]:
        """Return the tensors of the next sample, or batch; all calls share one iterator.

        Args:
            items: names, such as `image` and `label`.

        Where TensorFlow runs eagerly each call takes the next element.

        Raises:
            UsageError: an item is unknown, `items` is one name instead of a list, or the data set was made in another
                graph.
        """
        self._check(items)
        element = self._next_eagerly() if tf1.executing_eagerly() else self._next_in_graph()
        return [element[item] for item in items]

    def _next_eagerly(self) -> Mapping[str, Any]:
        if self._iterator is None:
            self._iterator = iter(self._dataset)
        try:
            element = next(self._iterator)
        except StopIteration:
            raise tf.errors.OutOfRangeError(None, None, "End of sequence") from None
        return self._finish(element) if self._finish else element

    def _next_in_graph(self) -> Mapping[str, Any]:
        made_in = getattr(self._dataset._variant_tensor, "graph", None)
        if made_in is not tf1.get_default_graph():
            raise UsageError(
                f"{type(self).__name__}.get() in another graph than that in which the data set was made",
                hint="make the data set inside of input_fn: each run, and each mode of it, has its own graph",
            )
        if self._element is None:
            element = _iterator(self._dataset).get_next()
            self._element = self._finish(element) if self._finish else element
        return self._element

    def to_tf_data(self, items: Sequence[str] | None = None) -> Any:
        """Return a `tf.data.Dataset` of dicts, or of tuples in the order of `items`."""
        dataset = self._dataset
        if self._finish:
            # As it runs in `get`: nothing rewrites its source.
            dataset = dataset.map(tf.autograph.experimental.do_not_convert(self._finish))
        if items is None:
            return dataset
        self._check(items)
        return dataset.map(lambda element: tuple(element[item] for item in items))

    def _check(self, items: Sequence[str]) -> None:
        if isinstance(items, str):
            raise UsageError(f"get({items!r}): expected a list of names", hint=f"get([{items!r}])")
        known = self.items
        for item in items:
            if item not in known:
                raise UsageError(f"no item {item!r} in this data set; {did_you_mean(item, known)}")


def _iterator(dataset: Any) -> Any:
    """Make an iterator that starts by itself; one that starts with the tables, if the data set looks up in some."""
    try:
        return tf1.data.make_one_shot_iterator(dataset)
    except ValueError:  # it refers to a resource
        initializers = tf1.GraphKeys.TABLE_INITIALIZERS
        with tf.control_dependencies(tf1.get_collection(initializers)):
            iterator = tf1.data.make_initializable_iterator(dataset)
        tf1.add_to_collection(initializers, iterator.initializer)
        return iterator
