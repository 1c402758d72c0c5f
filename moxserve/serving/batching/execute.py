"""Runs a batch: drops who does not wait any more, puts the rest together, runs the model, gives each its rows.

A batch that fails because of what a request may hold is cut in two halves that are run again, and so on: the request
that broke it gets its error, the others their answers. tensorflow_model_server fails them all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from moxserve.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    Unimplemented,
    UnknownError,
)
from moxserve.serving.batching.merge import alike, check_rows, merge, split
from moxserve.serving.batching.params import BatchingParameters
from moxserve.serving.batching.scheduler import Task, settled
from moxserve.serving.execution.admission import ServiceTimes
from moxserve.serving.execution.quickness import payload_bytes
from moxserve.serving.metrics import ServingMetrics

__all__ = ["Executor", "Model"]

logger = logging.getLogger(__name__)

Model = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]

# What the data of one request, or the size of a batch, may be the cause of.
_BY_REQUEST = (
    InvalidArgument, OutOfRange, FailedPrecondition, Unimplemented, Internal, UnknownError, ResourceExhausted,
)  # fmt: skip


class Learner(Protocol):
    """What learns from batches; see `moxserve.serving.batching.inline.Learned`."""

    def learn(self, rows: int, size: int, seconds: float) -> None:
        """Take a batch into account: its rows, the bytes of its inputs and how long it took."""
        ...

    def fix(self) -> None:
        """Put nothing together any more."""
        ...


class Executor:
    """Runs the batches of one queue.

    Args:
        name: of the model and its signature, for the log.
        model: takes the inputs [rows, ...] in the order of the queue, gives the outputs likewise.
        done: is told the requests that have outputs or an error, on the thread that ran them.
        parameters: sizes to fill batches up to, and whether arrays are filled up.
        times: notes how long batches take.
        learner: learns the size of batches, where nobody has set it. Then a model whose outputs do not have the rows
            of its inputs is run without putting requests together from then on, instead of failing them.
        metrics: where batches are counted; None for nowhere.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        done: Callable[[Sequence[Task]], None],
        parameters: BatchingParameters,
        times: ServiceTimes,
        learner: Learner | None = None,
        metrics: ServingMetrics | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._done = done
        self._parameters = parameters
        self._times = times
        self._learner = learner
        self._metrics = metrics

    def __call__(self, tasks: Sequence[Task]) -> None:
        """Run a batch. Never raises: what goes wrong is in the tasks."""
        try:
            self._run_all(tasks, time.monotonic())
        except Exception as error:
            logger.exception("%s: a batch failed in a way that nobody thought of", self._name)
            self._fail([task for task in tasks if not task.done], error)

    def _run_all(self, tasks: Sequence[Task], now: float) -> None:
        if self._metrics is not None:
            for task in tasks:
                self._metrics.queued(now - task.queued_at)
        waiting = self._waiting(tasks, now, first=True)
        for group in alike(waiting, pad_lengths=self._parameters.pad_variable_length_inputs) if waiting else ():
            self._run(group)

    def _waiting(self, tasks: Sequence[Task], now: float, *, first: bool = False) -> list[Task]:
        """Drop the tasks whose callers have left or do not wait any more."""
        present = [task for task in tasks if not task.left]
        waiting = [task for task in present if task.deadline > now]
        if len(waiting) < len(present):
            late = [task for task in present if task.deadline <= now]
            for task in late:
                if waiting or not first:
                    task.error = DeadlineExceeded("the deadline passed while waiting in the batching queue")
                else:
                    task.error = ResourceExhausted("Run() timeout exceeded while waiting in batching queue")
            self._tell(late)
        return waiting

    def _run(self, tasks: Sequence[Task]) -> None:
        try:
            outputs = self._outputs(tasks)
        except _BY_REQUEST as error:
            if len(tasks) > 1:
                self._run_halves(tasks)
            else:
                self._fail(tasks, error)
        except Exception as error:  # noqa: BLE001 - raised where each request waits
            self._fail(tasks, error)
        else:
            if len(tasks) == 1 and self._learner is not None:
                tasks[0].outputs = outputs
            else:
                split(outputs, tasks)
            self._tell(tasks)

    def _run_halves(self, tasks: Sequence[Task]) -> None:
        middle = len(tasks) // 2
        for half in (tasks[:middle], tasks[middle:]):
            if waiting := self._waiting(half, time.monotonic()):
                self._run(waiting)

    def _outputs(self, tasks: Sequence[Task]) -> Sequence[np.ndarray]:
        rows = sum(task.rows for task in tasks)
        padded = self._parameters.padded(rows) if rows else 0
        inputs = merge(tasks, padded)
        if self._metrics is not None:
            sizes = [len(array) for task in tasks for array in task.arrays]
            self._metrics.batch(sizes, padded, padded - rows if self._parameters.allowed_batch_sizes else None)
        began = time.perf_counter()
        outputs = self._model(inputs)
        seconds = time.perf_counter() - began
        self._times.record(padded, seconds)
        for task in tasks:
            task.run_began, task.run_s = began, seconds
        if self._learner is None:
            check_rows(outputs, padded)
        else:
            self._learner.learn(padded, payload_bytes(inputs), seconds)
            if len(tasks) > 1:
                self._check_promise(self._learner, outputs, padded)
        return outputs

    def _check_promise(self, learner: Learner, outputs: Sequence[np.ndarray], rows: int) -> None:
        try:
            check_rows(outputs, rows)
        except FailedPrecondition as error:
            logger.warning(
                "%s: its outputs do not have the rows of its inputs, although its signature says so; requests are not "
                "put together any more (%s)", self._name, error.message,
            )  # fmt: skip
            learner.fix()
            raise

    def _fail(self, tasks: Sequence[Task], error: BaseException) -> None:
        for task in tasks:
            task.error = error
        self._tell(tasks)

    def _tell(self, tasks: Sequence[Task]) -> None:
        if finished := settled(tasks):
            self._done(finished)
