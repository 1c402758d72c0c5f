"""Threads and turns, without any model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moxserve.errors import Unavailable
from moxserve.serving.batching import BatchingParameters, BatchThreads, scheduler
from moxserve.serving.batching.queues import BatchQueue
from moxserve.serving.batching.scheduler import Task, settled
from moxserve.serving.execution.admission import Admission, ServiceTimes

MakeThreads = Callable[..., BatchThreads]


@pytest.fixture
def threads() -> Iterator[MakeThreads]:
    made: list[BatchThreads] = []

    def make(count: int, **options: Any) -> BatchThreads:
        made.append(BatchThreads(count, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Log:
    """What was run, when; `gate` holds it up."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, batch: Sequence[Task]) -> None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.batches.append((time.monotonic(), [task.owner for task in batch]))
        self.entered.release()
        assert self.gate.wait(60)
        with self._lock:
            self.at_once -= 1

    def wait(self, batches: int) -> None:
        for _ in range(batches):
            assert self.entered.acquire(timeout=60)


def queue_of(log: Log, times: ServiceTimes | None = None, **parameters: Any) -> BatchQueue:
    return BatchQueue(BatchingParameters(**parameters), log, times or ServiceTimes())


def task(owner: int, rows: int = 1) -> Task:
    return Task([np.zeros(rows, np.float32)], rows, owner=owner)


def test_no_thread_before_the_first_task_and_no_more_than_needed(threads: MakeThreads) -> None:
    name, log = "only_here", Log()
    pool = threads(8, name=name)

    def count() -> int:
        return sum(thread.name.startswith(name) for thread in threading.enumerate())

    queue = queue_of(log, max_batch_size=1)
    assert count() == 0
    for i in range(20):
        pool.submit(queue, task(i))
        log.wait(1)
    assert 1 <= count() <= 8


def test_as_many_batches_at_once_as_there_are_threads(threads: MakeThreads) -> None:
    log = Log()
    log.gate.clear()
    pool, queue = threads(3), queue_of(log, max_batch_size=1)
    for i in range(7):
        pool.submit(queue, task(i))
    log.wait(3)
    time.sleep(0.05)
    assert log.most_at_once == 3
    log.gate.set()
    log.wait(4)
    assert log.most_at_once == 3
    assert sorted(owner for _, batch in log.batches for owner in batch) == list(range(7))


@pytest.mark.parametrize("count", [1, 4])
def test_an_earlier_batch_is_not_kept_waiting_by_a_later_one(count: int, threads: MakeThreads) -> None:
    """One thread watches the clock; it must learn of a queue whose time comes before the one it waits for."""
    late, soon = Log(), Log()
    pool = threads(count)
    later = queue_of(late, batch_timeout_micros=3_600_000_000)
    sooner = queue_of(soon, batch_timeout_micros=50_000)
    began = time.monotonic()
    pool.submit(later, task(1))
    time.sleep(0.01)
    pool.submit(sooner, task(2))
    soon.wait(1)
    ((at, _),) = soon.batches
    assert at - began >= 0.05
    assert late.batches == []
    pool.close()
    assert [batch for _, batch in late.batches] == [[1]]


def test_a_timeout_while_all_threads_are_busy(threads: MakeThreads) -> None:
    busy, waiting = Log(), Log()
    busy.gate.clear()
    pool = threads(1)
    pool.submit(queue_of(busy), task(0))
    busy.wait(1)
    queue = queue_of(waiting, batch_timeout_micros=1000)
    pool.submit(queue, task(1))
    time.sleep(0.05)
    pool.submit(queue, task(2))
    busy.gate.set()
    waiting.wait(1)
    assert waiting.batches[0][1] == [1, 2]


def test_closing_runs_what_waits_and_refuses_the_rest(threads: MakeThreads) -> None:
    log = Log()
    pool, queue = threads(2), queue_of(log, batch_timeout_micros=3_600_000_000)
    pool.submit(queue, task(1))
    pool.close()
    assert [batch for _, batch in log.batches] == [[1]]
    with pytest.raises(Unavailable, match="being stopped"):
        pool.submit(queue, task(2))


def test_many_producers_lose_nothing(threads: MakeThreads, wait_for: Callable[..., None]) -> None:
    log = Log()
    pool = threads(4)
    queues = [
        queue_of(log, max_batch_size=3, max_enqueued_batches=10**6, batch_timeout_micros=t) for t in (0, 200, 5000)
    ]

    def produce(first: int) -> None:
        for i in range(first, first + 500):
            pool.submit(queues[i % 3], task(i))

    producers = [threading.Thread(target=produce, args=(n * 500,)) for n in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    wait_for(lambda: sum(len(batch) for _, batch in log.batches) >= 2000, "every task")
    pool.close()
    assert sorted(owner for _, batch in log.batches for owner in batch) == list(range(2000))


def test_a_whole_is_finished_once_with_its_last_part() -> None:
    whole = task(1, rows=5)
    a, b = whole.split([3, 2])
    a.outputs = [np.float32([1, 2, 3])]
    assert settled([a]) == []
    b.outputs = [np.float32([4, 5])]
    assert settled([b]) == [whole]
    assert whole.outputs is not None
    assert whole.outputs[0].tolist() == [1, 2, 3, 4, 5]
    assert settled([a, b]) == []


def test_a_whole_fails_once_with_its_first_part_that_fails() -> None:
    whole = task(1, rows=3)
    parts = whole.split([1, 1, 1])
    parts[1].error = Unavailable("no")
    assert settled([parts[1]]) == [whole]
    assert whole.error is parts[1].error
    assert parts[2].left
    parts[0].outputs = [np.zeros(1)]
    assert settled([parts[0]]) == []


# Admission


def timed(seconds: float) -> ServiceTimes:
    times = ServiceTimes()
    times.record(1, seconds)
    return times


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is never nearer to its end, however busy the machine is."""
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: 1000.0))


@pytest.mark.usefixtures("no_time_passes")
def test_a_task_that_would_wait_too_long_is_refused(threads: MakeThreads) -> None:
    log = Log()
    log.gate.clear()
    pool = threads(1, admission=Admission(0.35))
    queue = queue_of(log, timed(0.1), max_batch_size=1)
    for i in range(4):  # one runs, and takes 0.1 s; the third one after it waits 0.3 s
        pool.submit(queue, task(i))
        if i == 0:
            log.wait(1)
    with pytest.raises(
        Unavailable, match=r"would wait about \d+ ms for its turn, and --max_queue_delay_ms allows 350 ms"
    ):
        pool.submit(queue, task(9))
    log.gate.set()
    log.wait(3)
    pool.submit(queue, task(10))  # and lets in again at once
    log.wait(1)
    assert [owner for _, batch in log.batches for owner in batch] == [0, 1, 2, 3, 10]


def test_a_deadline_that_cannot_be_kept_is_refused(threads: MakeThreads) -> None:
    log = Log()
    log.gate.clear()
    pool = threads(1, admission=Admission(60.0))
    queue = queue_of(log, timed(10.0), max_batch_size=1)
    for i in range(2):
        pool.submit(queue, task(i))
        if i == 0:
            log.wait(1)
    late = task(2)
    late.deadline = time.monotonic() + 5
    with pytest.raises(Unavailable, match="its deadline is in"):
        pool.submit(queue, late)
    log.gate.set()


@pytest.mark.usefixtures("no_time_passes")
def test_other_queues_before_it_count(threads: MakeThreads) -> None:
    log = Log()
    log.gate.clear()
    pool = threads(1, admission=Admission(0.5))
    slow, fast = queue_of(log, timed(0.4)), queue_of(log, timed(0.001))
    pool.submit(slow, task(0))
    log.wait(1)
    pool.submit(slow, task(1))
    with pytest.raises(Unavailable):  # what runs and what waits: 0.8 s
        pool.submit(fast, task(2))
    log.gate.set()


def test_without_a_limit_everything_is_let_in(threads: MakeThreads) -> None:
    log = Log()
    log.gate.clear()
    pool = threads(1)
    queue = queue_of(log, timed(1000.0), max_batch_size=1, max_enqueued_batches=100)
    for i in range(50):
        pool.submit(queue, task(i))
    log.gate.set()
    log.wait(50)
