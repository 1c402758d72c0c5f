"""What a pool of threads refuses, by how long its work takes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from moxserve.errors import Unavailable
from moxserve.serving.execution import RequestContext, WorkPool
from moxserve.serving.execution.admission import Admission


@pytest.mark.parametrize(("max_delay_s", "accepted"), [(0.0, 8), (0.25, 4), (0.01, 2)])
def test_work_that_would_wait_too_long_is_refused(max_delay_s: float, accepted: int) -> None:
    """Two threads, pieces of 0.2 s: the third waits 0.1 s, the fifth 0.3 s."""
    gate = threading.Event()
    pool = WorkPool(2, 6, "test", Admission(max_delay_s))

    async def scenario() -> list[Any]:
        tasks = [asyncio.ensure_future(pool.run(gate.wait, RequestContext(), 0.2)) for _ in range(9)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        answers = asyncio.run(scenario())
        assert [isinstance(answer, Unavailable) for answer in answers] == [False] * accepted + [True] * (9 - accepted)
        wait_for_idle(pool)
        assert asyncio.run(pool.run(lambda: 7, RequestContext(), 0.2)) == 7
    finally:
        pool.close()


def test_a_deadline_that_cannot_be_kept_is_refused() -> None:
    gate = threading.Event()
    pool = WorkPool(1, 9, "test", Admission(60.0))

    async def scenario() -> None:
        first = asyncio.ensure_future(pool.run(gate.wait, RequestContext(), 10.0))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="its deadline is in"):
            await pool.run(gate.wait, RequestContext(time.monotonic() + 5.0), 10.0)
        gate.set()
        await first

    try:
        asyncio.run(scenario())
    finally:
        pool.close()


def wait_for_idle(pool: Any, until: Callable[[], float] = time.monotonic) -> None:
    deadline = until() + 60
    while pool.busy:
        assert until() < deadline
        time.sleep(0.01)
