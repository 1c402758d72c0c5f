"""A request and an answer of HTTP, as every group of routes sees them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moxserve.errors import InvalidArgument, ResourceExhausted
from moxserve.serving.execution import RequestContext

__all__ = ["LARGE_BYTES", "LARGE_CELLS", "Headers", "RestAnswer", "RestRequest", "Routes"]

LARGE_BYTES = 64 << 10
"""JSON from this size on takes longer to read than the way to a thread and back."""
LARGE_CELLS = 4096
"""So many elements take longer to write as JSON."""

_MAX_INFLATED_BYTES = 100 << 20

Headers = Sequence[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True)
class RestAnswer:
    """What is sent back.

    Attributes:
        status: code of HTTP.
        body: the whole of it.
        content_type: its type.
        headers: further ones.
    """

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: Headers = ()


class RestRequest:
    """What was asked.

    Args:
        scope: of ASGI.
        receive: likewise.
        max_body_bytes: largest body, before and after inflating.

    Attributes:
        method: in capitals.
        path: still percent-encoded, without the query.
        query: what follows the question mark.
        context: how long the caller waits; completes `gone` when it has left.
        model: that it turned out to ask for, for the metrics.
        api: likewise, such as `predict`.
        status: name of the gRPC status that it is answered with; empty when only the answer's code tells.
    """

    __slots__ = ("_max_bytes", "_receive", "_scope", "api", "context", "method", "model", "path", "query", "status")

    def __init__(self, scope: Mapping[str, Any], receive: Receive, max_body_bytes: int) -> None:
        raw = scope.get("raw_path") or scope["path"].encode()
        self.method: str = scope["method"]
        path, _, query = raw.decode("latin-1").partition("?")
        self.path: str = path
        self.query: str = query or scope.get("query_string", b"").decode("latin-1")
        self.context = RequestContext(gone=self._gone)
        self.model = ""
        self.api = ""
        self.status = ""
        self._scope = scope
        self._receive = receive
        self._max_bytes = max_body_bytes

    @property
    def headers(self) -> Headers:
        """Return the header fields, their names in small letters."""
        fields: Headers = self._scope["headers"]
        return fields

    @property
    def peer(self) -> str:
        """Return the address of the caller; empty when it is not known."""
        client = self._scope.get("client")
        return f"{client[0]}:{client[1]}" if client else ""

    def header(self, name: str) -> str:
        """Return a header field; empty when it was not sent.

        Args:
            name: in small letters.
        """
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), "")

    async def body(self) -> bytes:
        """Read the body, once; one with `Content-Encoding: gzip` or `deflate` is inflated.

        Raises:
            InvalidArgument: it ends too early, or is no such data.
            ResourceExhausted: it is too large.
        """
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            data: bytes = message.get("body", b"")
            self._check_size(len(data))
        else:
            data = await self._rest_of_body(message)
        for name, value in self.headers:
            if name == b"content-encoding" and (encoding := value.strip().lower()) in (b"gzip", b"deflate"):
                return await _inflated(data, encoding.decode())
        return data

    async def _rest_of_body(self, message: Mapping[str, Any]) -> bytes:
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise InvalidArgument("the client went away before its request was complete")
            part = message.get("body", b"")
            size += len(part)
            self._check_size(size)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ResourceExhausted(f"the body has more than {self._max_bytes} bytes")

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Routes(Protocol):
    """A group of routes."""

    async def answer(self, request: RestRequest) -> RestAnswer | None:
        """Answer a request; None when it is for another group.

        Raises:
            MoxserveError: it is refused; its kind decides about the status.
        """
        ...


async def _inflated(body: bytes, encoding: str) -> bytes:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS + (16 if encoding == "gzip" else 0))
    try:
        data = inflater.decompress(body, LARGE_BYTES)
        if len(data) == LARGE_BYTES and not inflater.eof:
            # A small body may inflate to a large one, for which the event loop must not wait.
            left = _MAX_INFLATED_BYTES - len(data)
            data += await asyncio.to_thread(inflater.decompress, inflater.unconsumed_tail, left)
    except zlib.error as error:
        raise InvalidArgument(f"the body is no {encoding} data: {error}") from None
    if len(data) == _MAX_INFLATED_BYTES and not inflater.eof:
        raise ResourceExhausted(f"the body inflates to more than {_MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise InvalidArgument(f"the body is {encoding} data that ends too early")
    return data
