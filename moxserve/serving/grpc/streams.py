"""Streams of requests that end when the server stops: one that a client keeps open would hold up the stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

__all__ = ["Stream", "ending_with"]

Stream = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]


def ending_with(stopping: asyncio.Event, stream: Stream) -> Stream:
    """Have a method see the end of its requests when the server stops; it can still answer those that it has.

    Args:
        stopping: is set when the server stops.
        stream: takes and gives streams.
    """

    async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for answer in stream(_until(stopping, requests), context):
            yield answer

    return handle


async def _until(stopping: asyncio.Event, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    stop = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            request = asyncio.ensure_future(_next(requests))
            try:
                await asyncio.wait((request, stop), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not request.done():
                    request.cancel()
            if request.cancelled() or not request.done() or (data := request.result()) is None:
                return
            yield data
    finally:
        stop.cancel()


async def _next(requests: AsyncIterator[bytes]) -> bytes | None:
    return await anext(requests, None)
