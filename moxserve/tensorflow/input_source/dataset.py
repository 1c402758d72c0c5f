"""Inputs out of a `tf.data.Dataset`, and data flows as one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from moxserve.dataflow.base import DataFlow
from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.batching import IteratorRecorder, batch_dataset, is_endless
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant
from moxserve.tensorflow.executor.python_calls import steps
from moxserve.tensorflow.executor.rounds import TowerInputs, input_rounds
from moxserve.tensorflow.input_source.base import FeedfreeInput
from moxserve.tensorflow.input_source.reader import FlowReader
from moxserve.tensorflow.input_source.signature import Spec, as_signature

__all__ = ["TFDatasetInput", "dataflow_to_dataset"]


class _FlowDataset:
    """A data flow as a `tf.data.Dataset`, which remembers what the flow failed with.

    Args:
        reader: of the flow.
        signature: of what it gives.
    """

    def __init__(self, reader: FlowReader, signature: Sequence[Spec]) -> None:
        self._reader = reader
        self._signature = tuple(signature)
        self._lock = threading.Lock()
        self._number = 0
        self.error: BaseException | None = None

    def dataset(self) -> Any:
        """Make the dataset."""
        return tf.data.Dataset.from_generator(steps(self._generate), output_signature=self._signature)

    def _generate(self) -> Iterator[tuple[Any, ...]]:
        with self._lock:
            self._number += 1
            number = self._number
            self._reader.restart()
        while True:
            with self._lock:
                if number != self._number:  # an iterator that was restarted, and still has a call on its way
                    return
                arrays = self._next()
            if arrays is None:
                return
            yield tuple(arrays)

    def _next(self) -> Any:
        try:
            return self._reader.next(self._signature)
        except BaseException as error:
            self.error = error
            raise


def dataflow_to_dataset(df: DataFlow, types: Sequence[Any]) -> Any:
    """Make a `tf.data.Dataset` of tuples out of a data flow, which is reset here. It ends where the flow ends.

    Args:
        df: the flow.
        types: dtype of each component; or `tf.TensorSpec`s, which tell shapes, too.
    """
    signature = as_signature([t if hasattr(t, "shape") else (t, None) for t in types])
    reader = FlowReader(df, infinite=False, signature=signature)
    reader.open("EVAL")
    return _FlowDataset(reader, signature).dataset()


class TFDatasetInput(FeedfreeInput):
    """A `tf.data.Dataset`, or a data flow that runs inside of one.

    Args:
        dataset: what to read. A flow is read again and again in TRAIN, and once in EVAL and PREDICT; a dataset ends
            where it ends.
        signature: what the elements are to be; checked. Needed for a flow whose first datapoint does not tell.
    """

    dataflow_to_dataset = staticmethod(dataflow_to_dataset)

    def __init__(self, dataset: Any, *, signature: Sequence[Any] | None = None) -> None:
        self._dataset: Any = None
        self._reader: FlowReader | None = None
        self._wanted = None if signature is None else as_signature(signature)
        if isinstance(dataset, DataFlow):
            self._reader = FlowReader(dataset, signature=signature)
        elif isinstance(dataset, tf.data.Dataset):
            self._dataset = dataset
        else:
            raise UsageError(f"TFDatasetInput: expected a tf.data.Dataset or DataFlow, got {type(dataset).__name__}")
        self._flow: _FlowDataset | None = None
        self._batch_size = 0
        self._iterator: Any = None

    def make_batches(self, batch_size: int) -> None:
        """Batch the elements."""
        self._batch_size = batch_size

    def describe(self) -> str:
        """Name the source and its flow."""
        return f"TFDatasetInput({self._reader.name})" if self._reader is not None else "TFDatasetInput"

    # -- protocol

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        dataset = self._open(signature)
        if self._wanted is not None and self._reader is None:
            _check(dataset, self._wanted)
        if self._reader is not None:
            self.endless = self._reader.endless
        elif self._batch_size:
            dataset, self.endless = batch_dataset(dataset, self.mode, self._batch_size)
        else:
            self.endless = is_endless(dataset)
        if signature:
            _check(dataset, signature)
        with self.cached_name_scope(), tf.device("/cpu:0"):
            self._elements = dataset.prefetch(2) if self._reader else dataset
            self._iterator = tf1.data.make_initializable_iterator(self._elements)
        names = [spec.name for spec in signature or self._wanted or ()]
        specs = tf.nest.flatten(dataset.element_spec)
        self.signature = tuple(
            tf.TensorSpec(spec.shape, spec.dtype, name)
            for spec, name in zip(specs, names or [f"input_{i}" for i in range(len(specs))], strict=True)
        )
        if signature:
            self.signature = tuple(
                tf.TensorSpec(found.shape.merge_with(spec.shape), found.dtype, found.name)
                for found, spec in zip(self.signature, signature, strict=True)
            )

    def _open(self, signature: tuple[Spec, ...]) -> Any:
        if self._reader is None:
            return self._dataset
        if self._batch_size:
            self._reader.make_batches(self._batch_size)
        self._flow = _FlowDataset(self._reader, self._reader.open(self.mode, signature))
        return self._flow.dataset()

    def _get_callbacks(self) -> Sequence[Participant]:
        return [] if self._flow is None else [_Blame(self._flow)]

    def _get_input_tensors(self) -> Sequence[Any]:
        with self.cached_name_scope(), tf.device("/cpu:0"):
            tensors = tf.nest.flatten(self._iterator.get_next())
        for tensor, spec in zip(tensors, self.signature, strict=True):
            tensor.set_shape(spec.shape)
        return tensors

    def get_tower_tensors(self, towers: int) -> list[TowerInputs]:
        """Return the tensors of each tower."""
        recorder = IteratorRecorder()
        tensors = self.get_input_tensors()
        recorder.know(self._iterator, self._elements)
        with self.cached_name_scope(), tf.device("/cpu:0"):
            return input_rounds(tensors, recorder, towers)[0]

    def _reset_state(self) -> None:
        tf1.get_default_session().run(self._iterator.initializer, self._start_feed)

    def _size(self) -> int:
        if self._reader is None:
            raise NotImplementedError("a tf.data.Dataset ends where it ends")
        return self._reader.size()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _check(dataset: Any, wanted: Sequence[Spec]) -> None:
    """Hold the elements of a dataset against a signature.

    Raises:
        ModelSpecError: they do not fit; the message has all that differs.
    """
    specs = tf.nest.flatten(dataset.element_spec)
    if len(specs) != len(wanted):
        raise ModelSpecError(
            f"the dataset gives {len(specs)} components, and the signature has {len(wanted)}: "
            f"{', '.join(spec.name for spec in wanted)}"
        )
    wrong = [
        f"{spec.name}: {found.dtype.name}{found.shape} in the dataset, {spec.dtype.name}{spec.shape} in the signature"
        for found, spec in zip(specs, wanted, strict=True)
        if found.dtype != spec.dtype or not found.shape.is_compatible_with(spec.shape)
    ]
    if wrong:
        raise ModelSpecError("the dataset does not fit the signature:\n  " + "\n  ".join(wrong))


class _Blame(Participant):
    """Says what the flow failed with, where the runtime only says that something failed."""

    def __init__(self, flow: _FlowDataset) -> None:
        self._flow = flow

    def next_step(self, clock: Clock) -> int:
        """Never."""
        return NEVER

    def cause(self, error: Exception) -> BaseException | None:
        """What the flow failed with."""
        return self._flow.error
