"""From a user's `input_fn` to the tensors that `model_fn` gets: batching, restarts, and the end of the input.

While `input_fn` runs, one-shot iterators become initialisable ones that the executor initialises: they can be
restarted, and their datasets are known. With `auto_batch` the sample tensors are lifted into a dataset and batched
there (see `lift`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import DataError, ModelSpecError
from moxserve.tensorflow.datasets.base import INPUT_POSITIONS
from moxserve.tensorflow.executor.calls import call_with_mode, check_callable
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.lift import lift_to_dataset
from moxserve.tensorflow.executor.spec import ModeKeys

__all__ = ["ModeInput", "build_inputs", "collect_samples", "explain", "first_rows", "start_queues"]

_EXAMPLE = "def input_fn(mode, **kwargs): ... return image, label"


@dataclass
class ModeInput:
    """The input of one mode, built into the current graph.

    Attributes:
        tensors: what `model_fn` gets, batch dimension first when batches are made here or by the user.
        initializers: operations that start, or restart, the input; run in order.
        auto_batch: whether the batches are made here.
        endless: True when it is known that the input never ends.
        positions: scalars of the graph that say how many rows were given before (see `datasets.base`).
        started_with_tables: operations that start iterators and that the initialisation of tables runs, too.
    """

    tensors: list[Any]
    initializers: list[Any] = field(default_factory=list)
    auto_batch: bool = True
    endless: bool = False
    positions: list[Any] = field(default_factory=list)
    started_with_tables: list[Any] = field(default_factory=list)

    def start(self, session: Any, position: int = 0) -> None:
        """Start the input, or start it again: from the beginning, or after the rows that were given before.

        Args:
            session: whose input it is.
            position: how many rows were given; only inputs that say where they stand start later than at the beginning.
        """
        feed = dict.fromkeys(self.positions, position)
        # Tables are initialised without a position, and before each restart nobody initialises them again.
        tables = self.started_with_tables if position and self.positions else []
        for initializer in (*tables, *self.initializers):
            session.run(initializer, feed)

    def rows_per_step(self, batch_size: int) -> int:
        """How many rows a step takes: as the tensors say where batches are not made here, else `batch_size`."""
        first = self.tensors[0].shape
        rows = first[0] if not self.auto_batch and first.rank else None
        return batch_size if rows is None else int(rows)

    def export_shape(self, tensor: Any) -> tuple[int | None, ...] | None:
        """The shape that an exported model takes: as in training, but any number of rows when batches are made here."""
        if tensor.shape.rank is None:
            return None
        shape = tuple(tensor.shape.as_list())
        return (None, *shape[1:]) if self.auto_batch else shape


class _Recorder:
    """Collects the iterators that are made while `input_fn` runs."""

    _lock = threading.RLock()

    def __init__(self) -> None:
        self.initializers: dict[str, Any] = {}
        self.datasets: dict[str, Any] = {}

    def make_iterator(self, dataset: Any) -> Any:
        """Stand in for `Dataset.make_one_shot_iterator`."""
        iterator = tf1.data.make_initializable_iterator(dataset)
        name = iterator._iterator_resource.name
        self.initializers[name] = iterator.initializer
        self.datasets[name] = dataset
        return iterator

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Replace the making of one-shot iterators: the method and the module function both end there."""
        from tensorflow.python.data.ops import dataset_ops

        owner = dataset_ops.DatasetV1
        with self._lock:
            original = owner._make_one_shot_iterator
            owner._make_one_shot_iterator = lambda dataset: self.make_iterator(dataset)
            try:
                yield
            finally:
                owner._make_one_shot_iterator = original


def build_inputs(input_fn: Callable[..., Any], mode: str, batch_size: int, auto_batch: bool) -> ModeInput:
    """Call `input_fn` in the current graph and make what `model_fn` gets of its result.

    Args:
        input_fn: the user's function; returns a tensor, a list or tuple of tensors, or a `tf.data.Dataset`.
        mode: TRAIN, EVAL or PREDICT.
        batch_size: rows of a batch.
        auto_batch: True: the tensors are one sample, batches are made here. False: they are batches already.

    Returns:
        The source; with `auto_batch` the last batch of a finite input may have fewer rows.

    Raises:
        ModelSpecError: `input_fn` returned something else, or cannot be batched.
    """
    check_callable(input_fn, "input_fn", _EXAMPLE)
    known = {key: len(tf1.get_collection(key)) for key in (INPUT_POSITIONS, tf1.GraphKeys.TABLE_INITIALIZERS)}
    source = _build(input_fn, mode, batch_size, auto_batch)
    source.positions = tf1.get_collection(INPUT_POSITIONS)[known[INPUT_POSITIONS] :]
    started = tf1.get_collection(tf1.GraphKeys.TABLE_INITIALIZERS)[known[tf1.GraphKeys.TABLE_INITIALIZERS] :]
    source.started_with_tables = [op for op in started if op.type == "MakeIterator"]
    return source


def _build(input_fn: Callable[..., Any], mode: str, batch_size: int, auto_batch: bool) -> ModeInput:
    recorder = _Recorder()
    summaries = tf1.get_collection_ref(tf1.GraphKeys.SUMMARIES)
    before = list(summaries)
    with recorder.recording():
        result = call_with_mode(input_fn, (), mode, "input_fn")
        if isinstance(result, tf.data.Dataset):
            result = recorder.make_iterator(result).get_next()
            result = tf.nest.flatten(result)
    tensors = _check_tensors(result)
    if not auto_batch:
        return ModeInput(tensors, list(recorder.initializers.values()), auto_batch=False)
    dataset, captured = lift_to_dataset(tensors, recorder.datasets)
    # They tell of the sample that was cut out of the graph, and would ask for one more of an input that never starts.
    summaries[:] = before
    pulled = [op for name, op in recorder.initializers.items() if name in captured]
    return _batched(dataset, pulled, mode, batch_size)


def _check_tensors(result: Any) -> list[Any]:
    items = list(result) if isinstance(result, (list, tuple)) else [result]
    if not items or result is None:
        raise ModelSpecError("input_fn returned nothing", hint=_EXAMPLE)
    for position, item in enumerate(items):
        if not tf1.is_tensor(item) or isinstance(item, (tf1.SparseTensor, tf.RaggedTensor)):
            raise ModelSpecError(
                f"input_fn returned {type(item).__name__} at position {position}; every input must be a tf.Tensor",
                hint="wrap NumPy data: tf.data.Dataset.from_tensor_slices(data).make_one_shot_iterator().get_next()",
            )
        if item.graph is not tf1.get_default_graph():
            raise ModelSpecError(
                f"input_fn returned the tensor {item.name!r}, which was made outside of it",
                hint="make all tensors inside of input_fn: each run has its own graph",
            )
    return [tf.convert_to_tensor(item) for item in items]


def _batched(dataset: Any, pulled: Sequence[Any], mode: str, batch_size: int) -> ModeInput:
    endless, length_known = _length(dataset)
    # A fixed batch dimension is what training code expects ([32, 224, 224, 3]). It is promised where no smaller last
    # batch can come: endless input, and generators in TRAIN, whose length nobody knows; their last, smaller batch is
    # left out.
    full = endless or (mode == ModeKeys.TRAIN and not length_known)
    dataset = dataset.batch(batch_size, drop_remainder=full).prefetch(2)
    iterator = tf1.data.make_initializable_iterator(dataset)
    tensors = list(iterator.get_next())
    # Iterators that the map function pulls must be started before the batched one.
    return ModeInput(tensors, [*pulled, iterator.initializer], auto_batch=True, endless=endless)


def _length(dataset: Any) -> tuple[bool, bool]:
    """Tell whether a dataset is endless, and whether its length is known."""
    cardinality = tf.data.experimental.cardinality(dataset)
    try:
        with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
            value = int(session.run(cardinality))
    except tf.errors.OpError:  # it depends on something that is not initialised yet
        return False, False
    endless = value == tf.data.experimental.INFINITE_CARDINALITY or value >= 1 << 61
    return endless, endless or value >= 0


def collect_samples(
    input_fn: Callable[..., Any], mode: str, batch_size: int, auto_batch: bool = True, count: int = 32
) -> list[np.ndarray]:
    """Read the first rows of an input, in a graph and session of its own.

    Args:
        input_fn: the user's function.
        mode: the mode that it is called with.
        batch_size: rows of a batch.
        auto_batch: whether batches are made here.
        count: how many rows are wanted.

    Returns:
        One array per input, each with up to `count` rows; empty if an input has no batch dimension.

    Raises:
        ModelSpecError: `input_fn` broke its contract.
    """
    with tf1.Graph().as_default(), tf.device("/cpu:0"):
        source = build_inputs(input_fn, mode, batch_size, auto_batch)
        if any(tensor.shape.rank == 0 for tensor in source.tensors):
            return []
        with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
            session.run(
                [tf1.global_variables_initializer(), tf1.local_variables_initializer(), tf1.tables_initializer()]
            )
            source.start(session)
            coordinator = tf1.train.Coordinator()
            threads = start_queues(session, coordinator)
            batches = _first_batches(session, source.tensors, count)
            coordinator.request_stop()
            session.close()
            coordinator.join(threads, stop_grace_period_secs=5, ignore_live_threads=True)
    return first_rows([np.concatenate(parts) for parts in zip(*batches, strict=True)], count)


_UNEQUAL_SAMPLES = ("Cannot batch tensors with different shapes", "Cannot add tensor to the batch")


def explain(error: Any) -> DataError | None:
    """Tell what to do about an error of the runtime that is the input's fault; None for any other."""
    message = str(error.message)
    if not any(text in message for text in _UNEQUAL_SAMPLES):
        return None
    return DataError(
        f"the samples of input_fn cannot be made a batch: {message.splitlines()[0]}",
        hint="bring all samples to one shape in input_fn (tf.image.resize), or batch there and give auto_batch=False",
    )


def start_queues(session: Any, coordinator: Any) -> list[Any]:
    """Start the threads that fill the graph's queues, where `input_fn` uses the queue functions of `tf.train`."""
    if not session.graph.get_collection(tf1.GraphKeys.QUEUE_RUNNERS):
        return []
    threads: list[Any] = tf1.train.start_queue_runners(session, coordinator)
    return threads


def _first_batches(session: Any, tensors: Sequence[Any], count: int) -> list[list[np.ndarray]]:
    batches: list[list[np.ndarray]] = []
    rows = 0
    fetch = session.make_callable(list(tensors))
    while rows < count:
        try:
            batch = fetch()
        except tf.errors.OutOfRangeError:
            break
        batches.append(batch)
        if len(batch[0]) == 0:
            break
        rows += len(batch[0])
    return batches


def first_rows(arrays: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Cut arrays to their first rows; empty unless all of them have the same number of rows."""
    if not arrays or any(array.ndim == 0 for array in arrays) or len({len(array) for array in arrays}) != 1:
        return []
    return [array[:count] for array in arrays]
