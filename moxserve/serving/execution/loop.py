"""The event loop of a server, in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import logging
import math
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from moxserve.errors import Internal, Unavailable

__all__ = ["LoopThread"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_JOIN_S = 5.0
_LOOK_S = 1.0


class LoopThread:
    """An event loop that runs until `stop`, on uvloop where that is installed.

    Every transport and every coroutine of a server lives on it, so their state needs no locks.
    """

    def __init__(self) -> None:
        self.loop = _new_loop()
        self.loop.set_exception_handler(_report)
        self._thread = threading.Thread(target=self._run, name="moxserve-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it; not from the loop itself.

        Raises:
            Internal: it is called from the loop itself, which would wait for itself for ever.
            Unavailable: the loop was stopped.
            concurrent.futures.TimeoutError: the time was up; the coroutine is cancelled.
            BaseException: what the coroutine raised.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise Internal("a coroutine of the event loop waits for another; it should await it")
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise Unavailable("the server is stopped") from None
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not concurrent.futures.wait([future], min(_LOOK_S, max(0.0, deadline - time.monotonic()))).done:
            if not self._thread.is_alive() and not future.done():
                # It came while the loop ended: nobody runs it any more.
                coroutine.close()
                raise Unavailable("the server was stopped meanwhile")
            if time.monotonic() >= deadline:
                future.cancel()
                raise concurrent.futures.TimeoutError
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Unavailable("the server was stopped meanwhile") from None

    def stop(self) -> None:
        """Cancel what is still running, end the loop and its thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop)
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self.loop.close()


async def _cancel_all() -> None:
    current = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not current]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.get_running_loop().stop()


def _new_loop() -> asyncio.AbstractEventLoop:
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # gRPC wakes every loop of the process through one socket: whoever comes second finds nothing to read.
    if isinstance(context.get("exception"), BlockingIOError):
        return
    loop.default_exception_handler(context)
