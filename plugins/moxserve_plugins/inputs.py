"""What the input plugins share: parameters of shuffling and batching, and batches out of rows held in memory.

TensorFlow is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from moxserve.cores import available_cores
from moxserve.pipeline.slots import InputPlugin

__all__ = ["BatchedInput", "array_table", "batch_rows", "finish", "gather_rows"]

_PREFETCH_BATCHES = 2


class BatchedInput(InputPlugin):
    """Parameters of every input that gives batches of rows."""

    batch_size: int = Field(ge=1, description="Rows of a training step.")
    eval_batch_size: int | None = Field(
        default=None, ge=1, description="Rows of a step of evaluation or prediction; batch_size by default."
    )
    shuffle: bool = Field(
        default=True, description="Give the training rows in a new random order each epoch, every row exactly once."
    )
    seed: int | None = Field(
        default=None, ge=0, description="Seed of the order; by default it differs from run to run."
    )

    def rows_per_step(self, mode: str) -> int:
        """Return the batch size of a mode."""
        return self.batch_size if mode == "TRAIN" else self.eval_batch_size or self.batch_size


def batch_rows(config: BatchedInput, mode: str, rows: int, fetch: Callable[[Any], Any]) -> Any:
    """Make the batches of one mode from row numbers.

    TRAIN: endless; each epoch is an exact permutation of all rows (not a shuffle buffer), and batches run on across
    epochs, so all have the same size. A run that goes on reads on where it was; with a seed it reads what it would have
    read without the interruption. EVAL and PREDICT: once, in order, the last batch as small as it comes.

    Args:
        config: batch sizes, shuffling and seed.
        mode: TRAIN, EVAL or PREDICT.
        rows: how many there are.
        fetch: dataset of batches of row numbers `[batch] int64` -> dataset of tuples of tensors.

    Returns:
        The tensors of the next batch.
    """
    from moxserve.dataflow.order import EpochOrder
    from moxserve.tensorflow.datasets.base import ordered_rows

    training = mode == "TRAIN"
    order = EpochOrder(rows, shuffle=training and config.shuffle, seed=config.seed)
    numbers = ordered_rows(order, None if training else 1)
    batches = numbers.batch(config.rows_per_step(mode), drop_remainder=training)
    return finish(fetch(batches))


def finish(batches: Any) -> Any:
    """Prefetch, keep to this process's cores, and return the tensors of the next batch."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = max(2, available_cores())
    options.deterministic = True
    dataset = batches.prefetch(_PREFETCH_BATCHES).with_options(options)
    return tf.compat.v1.data.make_one_shot_iterator(dataset).get_next()


def gather_rows(table: Any, batches: Any) -> Any:
    """Pick rows out of a table held in memory.

    Args:
        table: dataset of one element, a tuple of tensors `[rows, ...]`; made once and kept.
        batches: dataset of row numbers `[batch] int64`.

    Returns:
        Dataset of tuples of tensors `[batch, ...]`.
    """
    import tensorflow as tf

    # The table's tensors are passed by reference: a batch costs one gather a column.
    both = tf.data.Dataset.zip((table.cache().repeat(), batches))
    return both.map(lambda columns, numbers: tuple(tf.gather(column, numbers) for column in columns))


def array_table(load: Callable[[], Sequence[Any]], specs: Sequence[Any]) -> Any:
    """Make a table of NumPy arrays that are loaded when the first batch is asked for, outside the graph.

    Args:
        load: returns the arrays, equal in their first dimension.
        specs: an array of each one's dtype and shape, for the static shapes; its values are not used.
    """
    import tensorflow as tf

    from moxserve.tensorflow.executor.python_calls import python_function

    def loaded() -> list[Any]:
        return list(load())

    def columns(_: Any) -> tuple[Any, ...]:
        found = python_function(loaded, [], [tf.as_dtype(spec.dtype) for spec in specs])
        for tensor, spec in zip(found, specs, strict=True):
            tensor.set_shape(spec.shape)
        return tuple(found)

    return tf.data.Dataset.from_tensors(0).map(columns)
