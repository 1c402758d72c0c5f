"""What closing waits for: a run goes on when its caller has left, and the model must not be freed under it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moxserve.errors import DeadlineExceeded, Internal, Unavailable
from moxserve.serving.execution import DirectRunner, LoopThread, RequestContext, WorkPool
from moxserve.serving.servable import Servable


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


def _backend(events: list[str], go_on: threading.Event) -> Any:
    def run(*_: object) -> dict[str, np.ndarray]:
        events.append("begun")
        go_on.wait(60)
        events.append("over")
        return {}

    return SimpleNamespace(run=run, run_here=run, calls={}, close=lambda: events.append("closed"))


def test_a_version_is_freed_after_runs_whose_callers_have_left(loop: LoopThread, wait_for: Callable[..., None]) -> None:
    events: list[str] = []
    go_on = threading.Event()
    backend = _backend(events, go_on)
    runner = DirectRunner(backend, WorkPool(1, 10, "test"))
    servable = Servable("model", 1, "/model/1", backend, runner)

    async def ask() -> None:
        context = RequestContext(deadline=time.monotonic() + 0.1)
        with servable.hold():
            await runner.run("a", {"x": np.zeros(1)}, None, context)

    def left() -> bool:
        # A run that was not begun in time is dropped, and the next one shows what is to be seen.
        with pytest.raises(DeadlineExceeded):
            loop.call(ask())
        return bool(events)

    wait_for(left, "the run begins")
    retired = threading.Thread(target=servable.retire)
    retired.start()
    retired.join(0.1)
    assert events == ["begun"]
    go_on.set()
    retired.join(60)
    assert events == ["begun", "over", "closed"]


def test_who_asks_a_loop_that_has_ended_is_told(loop: LoopThread) -> None:
    async def one() -> int:
        return 1

    assert loop.call(one()) == 1
    loop.stop()
    with pytest.raises(Unavailable, match="stopped"):
        loop.call(one())


@pytest.mark.slow
def test_who_asks_while_the_loop_ends_is_told(loop: LoopThread) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    # As it is for a coroutine that comes after the last turn of the loop: the thread has ended, the loop is open.
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    with pytest.raises(Unavailable, match="stopped"):
        loop.call(never())


def test_the_loop_does_not_wait_for_itself(loop: LoopThread) -> None:
    async def one() -> int:
        return 1

    async def two() -> int:
        return loop.call(one())

    with pytest.raises(Internal):
        loop.call(two())
