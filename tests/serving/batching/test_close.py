"""A version may be freed only when no batch of it is run any more, also none that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from moxserve.serving.batching.params import BatchingParameters
from moxserve.serving.batching.queues import BatchQueue
from moxserve.serving.batching.scheduler import BatchThreads, Task
from moxserve.serving.execution.admission import ServiceTimes


def test_closing_a_queue_waits_for_the_batch_that_is_run(wait_for: Callable[..., None]) -> None:
    events: list[str] = []
    go_on = threading.Event()

    def execute(tasks: Sequence[Task]) -> None:
        events.append("begun")
        go_on.wait(60)
        events.append("over")

    threads = BatchThreads(1)
    queue = BatchQueue(BatchingParameters(batch_timeout_micros=0), execute, ServiceTimes())
    task = Task([np.zeros((1, 1))], 1)
    threads.submit(queue, task)
    wait_for(lambda: events, "the batch begins")
    threads.cancel(queue, task)
    closing = threading.Thread(target=threads.close_queue, args=(queue,))
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert events == ["begun", "over"]
    threads.close()
