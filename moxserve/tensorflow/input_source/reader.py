"""A data flow as an input reads it: reset once, batched, repeated, and its first datapoint known before the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow, DataFlowTerminated
from moxserve.dataflow.batch import BatchBuilder
from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.input_source.signature import Spec, as_signature, batched, fit, infer

__all__ = ["FlowReader"]


class FlowReader:
    """Reads a flow for an input.

    Args:
        ds: the flow.
        infinite: whether it is read again and again in TRAIN; EVAL and PREDICT read it once.
        signature: of its datapoints; None to take it off the first one.

    Attributes:
        count: how many datapoints it has given, over all restarts.
    """

    def __init__(self, ds: DataFlow, infinite: bool = True, signature: Sequence[Any] | None = None) -> None:
        if not isinstance(ds, DataFlow):
            raise UsageError(
                f"expected a DataFlow, got {type(ds).__name__}", hint="moxserve.dataflow.DataFromGenerator(generator)"
            )
        self.ds = ds
        self.count = 0
        self._infinite = infinite
        self._given = None if signature is None else as_signature(signature)
        self._batch_size = 0
        self._repeats = False
        self._full = True
        self._iterator: Iterator[Any] | None = None
        self._peeked: list[Any] = []

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self.ds).__name__

    @property
    def given(self) -> tuple[Spec, ...] | None:
        """The signature that it was made with."""
        return self._given

    @property
    def endless(self) -> bool:
        """Whether it is read again and again."""
        return self._repeats

    def make_batches(self, batch_size: int) -> None:
        """Stack so many datapoints each time."""
        self._batch_size = batch_size

    def size(self) -> int:
        """How many elements one pass gives.

        Raises:
            NotImplementedError: the flow does not know.
        """
        count = len(self.ds)
        if not self._batch_size:
            return count
        return count // self._batch_size if self._full else -(-count // self._batch_size)

    def open(self, mode: str, signature: Sequence[Spec] = (), *, samples: bool = False) -> tuple[Spec, ...]:
        """Reset the flow, which may fork, and return the signature of what is read.

        Args:
            mode: TRAIN reads again and again, if it may, and leaves a smaller last batch out.
            signature: of the model; wins over what was given to the constructor.
            samples: the datapoints are no batches, whatever the caller makes of them.

        Raises:
            DataError: the flow gives no datapoint, or one that does not fit.
        """
        training = mode == ModeKeys.TRAIN
        self._repeats, self._full = training and self._infinite, training
        self.ds.reset_state()
        rows = self._batch_size if self._batch_size and self._full else None
        given = as_signature(signature) if signature else self._given
        if given is not None:
            return batched(given, rows) if self._batch_size else given
        self._iterator = self._read()
        self._peeked = [next(self._iterator, None)]
        if self._peeked[0] is None:
            raise DataError(f"{self.name} gave no data", hint="is it empty, or smaller than a batch?")
        return infer(self._peeked[0], self.name, rows, fixed=samples)

    def restart(self) -> None:
        """Read from the beginning; a datapoint that was only looked at is at the beginning."""
        if self._peeked and self.count == 0:
            return
        self.stop()
        self._iterator = self._read()

    def next(self, signature: Sequence[Spec]) -> list[np.ndarray] | None:
        """Return the next arrays, or None at the end."""
        if self._iterator is None:
            self._iterator = self._read()
        try:
            datapoint = self._peeked.pop() if self._peeked else next(self._iterator, None)
        except DataFlowTerminated:
            return None
        if datapoint is None:
            return None
        self.count += 1
        return fit(datapoint, signature, self.name)

    def stop(self) -> None:
        """End the iteration that is open."""
        self._peeked = []
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()  # type: ignore[attr-defined]

    def release(self) -> None:
        """End the processes and threads of the flow, and of the flows inside it; whoever waits for them comes back."""
        for flow in _all_flows(self.ds):
            close = getattr(flow, "close", None)
            if callable(close):
                close()

    def close(self) -> None:
        """End the iteration and the flow. A thread that does not come back from the flow holds the iteration open."""
        self.release()
        with suppress(ValueError):
            self.stop()

    def _read(self) -> Iterator[Any]:
        datapoints = self._passes()
        if not self._batch_size:
            return datapoints
        return self._batches(datapoints)

    def _passes(self) -> Iterator[Any]:
        while True:
            empty = True
            for datapoint in self.ds:
                empty = False
                yield datapoint
            if empty:
                raise DataError(f"{self.name} gave no data", hint="is it empty?")
            if not self._repeats:
                return

    def _batches(self, datapoints: Iterator[Any]) -> Iterator[Any]:
        builder = BatchBuilder(self._batch_size)
        for datapoint in datapoints:
            builder.add(datapoint)
            if builder.count == self._batch_size:
                yield builder.finish()
                builder = BatchBuilder(self._batch_size)
        if builder.count and not self._full:
            yield builder.finish()


def _all_flows(flow: DataFlow) -> Iterator[DataFlow]:
    """Yield a flow and the flows that it is made of, as far as its attributes tell."""
    seen: set[int] = set()
    pending: list[Any] = [flow]
    while pending:
        value = pending.pop()
        if isinstance(value, (list, tuple)):
            pending.extend(value)
        elif isinstance(value, DataFlow) and id(value) not in seen:
            seen.add(id(value))
            yield value
            pending.extend(vars(value).values())
