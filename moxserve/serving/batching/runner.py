"""The runner of a version whose requests are put together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moxserve.errors import InvalidArgument
from moxserve.serving.backends.base import Backend
from moxserve.serving.batching.adaptive import AdaptiveQueue, BatchLimit
from moxserve.serving.batching.execute import Executor
from moxserve.serving.batching.inline import MAX_BATCH_S, Learned, LoopBatches
from moxserve.serving.batching.lanes import Form, Key, common_rows, form_of, form_together
from moxserve.serving.batching.params import MAX_WAITING, BatchingParameters
from moxserve.serving.batching.queues import BatchQueue
from moxserve.serving.batching.scheduler import BatchThreads, Queue, Task
from moxserve.serving.execution.admission import ServiceTimes
from moxserve.serving.execution.base import Runner
from moxserve.serving.execution.context import RequestContext
from moxserve.serving.execution.pool import patiently
from moxserve.serving.execution.quickness import Quickness
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.observe.current import current_record

__all__ = ["BatchingRunner"]

# Each set of outputs that a client asks for is a form of its own: forget the oldest, it can be made again.
_MAX_FORMS = 256


class BatchingRunner:
    """Puts requests together before they are run; see `Runner`.

    Args:
        backend: that runs the model.
        direct: runs what cannot be put together.
        threads: of all models.
        parameters: sizes and times; None learns them from the load.
        max_waiting: requests that may wait in one queue, when there are no parameters.
        metrics: where batches are counted; None for nowhere.
    """

    def __init__(
        self,
        backend: Backend,
        direct: Runner,
        threads: BatchThreads,
        parameters: BatchingParameters | None,
        *,
        max_waiting: int = MAX_WAITING,
        metrics: ServingMetrics | None = None,
    ) -> None:
        self._backend = backend
        self._direct = direct
        self._threads = threads
        self._parameters = parameters
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._forms: dict[Key, tuple[Form, _Lane] | None] = {}
        self._lanes: dict[Key, _Lane] = {}

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        context: RequestContext,
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Runner.run`.

        Raises:
            InvalidArgument: there are BatchingParameters, and the inputs have no common number of rows or too many.
        """
        asked = (signature, tuple(inputs), tuple(outputs or ()))
        if asked not in self._forms:
            form = form_of(self._backend, signature, list(inputs), outputs, rows_only=self._parameters is None)
            self._remember(asked, form)
        known = self._forms[asked]
        if known is None:
            return await self._direct.run(signature, inputs, outputs, context)
        form, lane = known
        arrays = [inputs[alias] for alias in form.feeds]
        rows = self._rows(form, arrays)
        if rows is None:
            return await self._direct.run(signature, inputs, outputs, context)
        found = await self._batched(lane, Task(arrays, rows, context.deadline), context)
        return dict(zip(form.fetches, found, strict=True))

    async def run_together(
        self, signatures: Sequence[str], array: np.ndarray, context: RequestContext
    ) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Runner.run_together`."""
        asked = ("together", *sorted(signatures))
        if asked not in self._forms:
            self._remember(asked, form_together(self._backend, signatures))
        known = self._forms[asked]
        rows = self._rows(known[0], [array]) if known else None
        if known is None or rows is None:
            return await self._direct.run_together(signatures, array, context)
        form, lane = known
        found = await self._batched(lane, Task([array], rows, context.deadline), context)
        named = dict(zip(form.fetches, found, strict=True))
        calls = self._backend.calls
        return [{alias: named[f"{name}\0{alias}"] for alias in calls[name].output_names} for name in signatures]

    def close(self) -> None:
        """Take nothing more, and wait for what is run; see `Runner.close`."""
        for lane in self._lanes.values():
            self._threads.close_queue(lane.queue)
        self._direct.close()

    def _rows(self, form: Form, arrays: Sequence[np.ndarray]) -> int | None:
        """Return how many rows a request has; None when it must be run by itself."""
        if self._parameters is not None:
            return common_rows(arrays)
        if any(rank != array.ndim for rank, array in zip(form.ranks, arrays, strict=True)):
            return None
        try:
            return common_rows(arrays)
        except InvalidArgument:
            return None

    async def _batched(self, lane: _Lane, task: Task, context: RequestContext) -> Sequence[np.ndarray]:
        context.check()
        future: asyncio.Future[Sequence[np.ndarray]] = asyncio.get_running_loop().create_future()
        task.owner = future
        if lane.on_loop is not None and lane.on_loop.suits(task):
            lane.on_loop.offer(task, time.monotonic())
        else:
            self._threads.submit(lane.queue, task)
        try:
            outputs = await patiently(future, context)
            record = current_record()
            if record is not None and task.run_began:
                record.ran(task.run_began, task.run_s)
            return outputs
        finally:
            if not task.done:
                self._threads.cancel(lane.queue, task)

    def _remember(self, asked: Key, form: Form | None) -> None:
        while len(self._forms) >= _MAX_FORMS:
            self._forms.pop(next(iter(self._forms)))
        self._forms[asked] = None if form is None else (form, self._lane(form))

    def _lane(self, form: Form) -> _Lane:
        lane = self._lanes.get(form.key)
        if lane is None:
            while len(self._lanes) >= _MAX_FORMS:
                self._lanes.pop(next(iter(self._lanes)))
            lane = self._lanes[form.key] = self._new_lane(form)
        return lane

    def _new_lane(self, form: Form) -> _Lane:
        times, metrics = ServiceTimes(), self._metrics
        if self._parameters is not None:
            execute = Executor(form.name, form.model, _deliver, self._parameters, times, metrics=metrics)
            return _Lane(BatchQueue(self._parameters, execute, times))
        # Apart for both places: what a batch takes on a thread says nothing of the loop.
        on_thread, on_loop = BatchLimit(times), BatchLimit(loop_times := ServiceTimes(), MAX_BATCH_S)
        quickness, any_size = Quickness(), BatchingParameters()
        of_thread = Learned(on_thread, quickness, on_loop=False)
        of_loop = Learned(on_loop, quickness, on_loop=True)
        run_there = Executor(form.name, form.model, _deliver, any_size, times, of_thread, metrics)
        run_here = Executor(form.name, form.model_here, _resolve, any_size, loop_times, of_loop, metrics)
        return _Lane(
            AdaptiveQueue(on_thread, self._max_waiting, run_there, times),
            LoopBatches(run_here, on_loop, quickness, self._max_waiting),
        )


@dataclass(frozen=True, slots=True)
class _Lane:
    """Where the requests of a lane wait: for a thread, or on the loop while the model is quick."""

    queue: Queue
    on_loop: LoopBatches | None = None


def _deliver(tasks: Sequence[Task]) -> None:
    """Hand outputs over to the coroutines that wait for them, with one wake-up of the loop for all."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Task]] = defaultdict(list)
    for task in tasks:
        by_loop[task.owner.get_loop()].append(task)
    for loop, ours in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, ours)


def _resolve(tasks: Sequence[Task]) -> None:
    for task in tasks:
        future = task.owner
        if future.done():
            continue
        if task.error is not None:
            future.set_exception(task.error)
        else:
            future.set_result(task.outputs)
