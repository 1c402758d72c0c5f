"""`batch_gradients`: gradients of several steps make one update, as if the batch were that much larger."""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper, Pairs, apart, count_step, tensors

__all__ = ["BatchGradients"]


class BatchGradients(OptimizerWrapper):
    """Sums the gradients of `num_batches` steps, and has their mean applied once.

    Every step counts for `global_step`, so schedules by epochs stay true. The variables change at each `num_batches`-th
    step. Sums are float32 for half-precision variables. A variable whose gradients are sparse is updated in the rows
    that any of the steps touched, as one sparse gradient of the larger batch would do.

    Args:
        optimizer: the one inside.
        num_batches: steps an update.
        sync_on_apply: where workers train apart (`sync_replicas=False`): they meet at each update and apply the mean
            of all. False: each applies its own mean.

    Raises:
        UsageError: `num_batches` is not a positive whole number.
    """

    kind = "batch_gradients"
    gathers = True
    averages = True

    def __init__(self, optimizer: Any, num_batches: int, sync_on_apply: bool = False) -> None:
        if isinstance(num_batches, bool) or not isinstance(num_batches, int) or num_batches < 1:
            raise UsageError(f"batch_gradients: num_batches={num_batches!r}, expected a whole number above 0")
        self.meets = bool(sync_on_apply)
        super().__init__(optimizer)
        self._num_batches = num_batches

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        sums = [_Sum(self, gradient, variable) for gradient, variable in pairs]
        count = self._state("count", [], tf.int64)
        with tf1.control_dependencies([one.add() for one in sums]):
            filled = count.assign_add(1, read_value=True)

        def update() -> Any:
            means = [(one.mean(self._num_batches), one.variable) for one in sums]
            parts = [part for mean, _ in means for part in tensors(mean)]
            meeting = self.meets and apart()
            applied = self._apply_together(means) if meeting else self._optimizer.apply_gradients(means)
            with tf1.control_dependencies([applied, *parts]):
                cleared = [*(one.clear() for one in sums), count.assign(0, read_value=False)]
            with tf1.control_dependencies(cleared):
                return tf.constant(True)

        # Not "equal": a checkpoint of a run with more batches an update may hold a larger count.
        done = tf1.cond(filled >= self._num_batches, update, lambda: tf.constant(False))
        return count_step(global_step, [done])


class _Sum:
    """The sum of a variable's gradients, and for sparse ones which rows it has."""

    def __init__(self, owner: BatchGradients, gradient: Any, variable: Any) -> None:
        self.variable = variable
        self._gradient = gradient
        dtype = variable.dtype.base_dtype
        self._dtype = tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype
        self._total = owner._state(f"{variable.op.name}/sum", variable.shape, self._dtype)
        self._rows: Any = None
        if isinstance(gradient, tf.IndexedSlices):
            self._rows = owner._state(f"{variable.op.name}/rows", variable.shape[:1], tf.bool, False)

    def add(self) -> Any:
        """Add the gradient of this step."""
        if self._rows is None:
            return self._total.assign_add(tf.cast(self._gradient, self._dtype), read_value=False)
        indices, values = self._gradient.indices, tf.cast(self._gradient.values, self._dtype)
        touched = self._rows.scatter_update(tf.IndexedSlices(tf.ones_like(indices, tf.bool), indices))
        added = self._total.scatter_add(tf.IndexedSlices(values, indices))
        return tf.group(touched, added)

    def mean(self, count: int) -> Any:
        """Give the mean of the summed gradients, sparse if they were."""
        dtype = self.variable.dtype.base_dtype
        if self._rows is None:
            return tf.cast(self._total.read_value() / count, dtype)
        rows = tf.where(self._rows.read_value())[:, 0]
        values = tf.cast(self._total.sparse_read(rows) / count, dtype)
        return tf.IndexedSlices(values, rows, tf.shape(self.variable, out_type=tf.int64))

    def clear(self) -> Any:
        """Begin again."""
        cleared = [self._total.assign(tf.zeros(self._total.shape, self._dtype), read_value=False)]
        if self._rows is not None:
            cleared.append(self._rows.assign(tf.zeros(self._rows.shape, tf.bool), read_value=False))
        return tf.group(*cleared)
