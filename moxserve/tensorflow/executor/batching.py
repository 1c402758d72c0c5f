"""Iterators that are recorded while a user's code makes them, and batches of a dataset's elements."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.lift import lift_to_dataset
from moxserve.tensorflow.executor.repeatable import input_draws
from moxserve.tensorflow.executor.spec import ModeKeys

__all__ = ["IteratorRecorder", "batch_dataset", "check_tensors", "is_endless", "lift_batches"]

_EXAMPLE = "def input_fn(mode, **kwargs): ... return image, label"


class IteratorRecorder:
    """Collects the one-shot iterators that are made inside of `recording`, as initialisable ones.

    Attributes:
        initializers: operation that starts an iterator, by the name of its resource tensor.
        datasets: dataset behind an iterator, by the same name.
        summaries: the graph's collection of summaries before anything was recorded.
    """

    _lock = threading.RLock()

    def __init__(self) -> None:
        self.initializers: dict[str, Any] = {}
        self.datasets: dict[str, Any] = {}
        self.summaries: list[Any] = tf1.get_collection(tf1.GraphKeys.SUMMARIES)

    def make_iterator(self, dataset: Any) -> Any:
        """Stand in for `Dataset.make_one_shot_iterator`."""
        draws = input_draws()
        if draws is not None and not draws.by_row:
            dataset = draws.resumed(dataset)
        iterator = tf1.data.make_initializable_iterator(dataset)
        self.know(iterator, dataset)
        return iterator

    def know(self, iterator: Any, dataset: Any) -> None:
        """Note what an initialisable iterator is of."""
        name = iterator._iterator_resource.name
        self.initializers[name] = iterator.initializer
        self.datasets[name] = dataset

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


def check_tensors(result: Any, what: str) -> list[Any]:
    """Check what a function of the user's returned: a tensor, or a list or tuple of tensors, of the current graph.

    Args:
        result: what it returned.
        what: the function's name.

    Raises:
        ModelSpecError: it is something else.
    """
    items = list(result) if isinstance(result, (list, tuple)) else [result]
    if not items or result is None:
        raise ModelSpecError(f"{what} returned nothing", hint=_EXAMPLE)
    for position, item in enumerate(items):
        if not tf1.is_tensor(item) or isinstance(item, (tf1.SparseTensor, tf.RaggedTensor)):
            raise ModelSpecError(
                f"{what} returned {type(item).__name__} at position {position}; every input must be a tf.Tensor",
                hint="wrap NumPy data: tf.data.Dataset.from_tensor_slices(data).make_one_shot_iterator().get_next()",
            )
        if item.graph is not tf1.get_default_graph():
            raise ModelSpecError(
                f"{what} returned the tensor {item.name!r}, which was made outside of it",
                hint=f"make all tensors inside of {what}: each run has its own graph",
            )
    return [tf.convert_to_tensor(item) for item in items]


def lift_batches(
    samples: Sequence[Any],
    recorder: IteratorRecorder,
    mode: str,
    batch_size: int,
    *,
    count: int | None = None,
    towers: int = 1,
) -> tuple[list[Any], list[Any], bool]:
    """Make batches of the tensors of one sample.

    Args:
        samples: the tensors.
        recorder: which recorded the iterators that they come from, and knows that of the batches afterwards.
        mode: TRAIN, EVAL or PREDICT.
        batch_size: rows of a batch.
        count: how many samples there are; None for as many as come.
        towers: how many batches a step takes.

    Returns:
        The tensors of a batch; operations that start the input, in order; and whether it never ends.

    Raises:
        ModelSpecError: the samples depend on a placeholder.
    """
    dataset, captured = lift_to_dataset(samples, recorder.datasets)
    # They tell of the sample that was cut out of the graph, and would ask for one more of an input that never starts.
    tf1.get_collection_ref(tf1.GraphKeys.SUMMARIES)[:] = recorder.summaries
    # Iterators that the map function pulls must be started before the batched one.
    pulled = [op for name, op in recorder.initializers.items() if name in captured]
    dataset = dataset if count is None else dataset.take(count)
    dataset, endless = batch_dataset(dataset, mode, batch_size, towers)
    iterator = recorder.make_iterator(dataset)
    return list(iterator.get_next()), [*pulled, iterator.initializer], endless


def batch_dataset(dataset: Any, mode: str, batch_size: int, towers: int = 1) -> tuple[Any, bool]:
    """Batch the elements of a dataset, some batches ahead.

    A fixed batch dimension is what training code expects ([32, 224, 224, 3]). It is promised where no smaller last
    batch can come: endless input, and generators in TRAIN, whose length nobody knows; their last, smaller batch is left
    out.

    Args:
        dataset: of samples.
        mode: TRAIN, EVAL or PREDICT.
        batch_size: rows of a batch.
        towers: how many batches a step takes.

    Returns:
        The dataset of batches, and whether it never ends.
    """
    endless, length_known = _length(dataset)
    full = endless or (mode == ModeKeys.TRAIN and not length_known)
    return dataset.batch(batch_size, drop_remainder=full).prefetch(2 * towers), endless


def is_endless(dataset: Any) -> bool:
    """Tell whether it is known of a dataset that it never ends."""
    return _length(dataset)[0]


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
