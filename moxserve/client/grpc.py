"""The gRPC transports. The only module of the client that imports grpc, and only when one is made."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import grpc

from moxserve.client.calls import Call, Reply
from moxserve.client.refusals import PORTS, nobody_answers, overdue, refused, unavailable
from moxserve.client.transport import is_loopback
from moxserve.client.wire import encode
from moxserve.errors import MoxserveError, ServerUnreachableError

__all__ = ["AsyncGrpcTransport", "GrpcTransport"]

_LIMITS: tuple[tuple[str, Any], ...] = (
    # gRPC's own default refuses answers over 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that has just come up is found within a tenth of a second instead of one.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
# gRPC does not tell its own UNAVAILABLE from the server's; these words are its own.
_OWN_WORDS = (
    "failed to connect", "last error", "errors resolving", "dns resolution", "socket closed", "connection reset",
    "goaway", "stream removed", "recvmsg", "endpoint closing", "broken pipe", "handshake", "channel closed",
)  # fmt: skip
_REASONS = (
    "Connection refused", "DNS resolution failed", "Domain name not found", "Name or service not known",
    "No route to host", "Network is unreachable", "Connection reset by peer", "Socket closed",
    "No such file or directory", "Handshake",
)  # fmt: skip


def _options(address: str) -> list[tuple[str, Any]]:
    options = list(_LIMITS)
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    return options


class GrpcTransport:
    """Calls TensorFlow Serving's gRPC services.

    Args:
        address: `HOST:PORT`, or `unix:PATH`.
        secure: use TLS with the system's certificates.
    """

    def __init__(self, address: str, *, secure: bool = False) -> None:
        self.target = _name(address, secure)
        options = _options(address)
        self._channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
            if secure
            else grpc.insecure_channel(address, options)
        )
        self._methods: dict[str, Callable[..., bytes]] = {}
        self._lock = threading.Lock()

    def handle(self, call: Call) -> Reply:
        """Send one call and wait for its answer.

        Raises:
            ServerUnreachableError: nobody answers, or the server says UNAVAILABLE.
            RequestError: every other status.
        """
        exchange = encode(call)
        try:
            data = self._method(exchange.method)(exchange.payload, timeout=call.timeout_s)
        except grpc.RpcError as error:
            raise _translate(error, self.target, call.timeout_s) from error
        return exchange.decode(data)

    def _method(self, name: str) -> Callable[..., bytes]:
        found = self._methods.get(name)
        if found is None:
            with self._lock:
                found = self._methods.setdefault(name, self._channel.unary_unary(name))
        return found

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()


class AsyncGrpcTransport:
    """The same for asyncio; connects within the loop that makes the first call.

    Args:
        address: `HOST:PORT`, or `unix:PATH`.
        secure: use TLS with the system's certificates.
    """

    def __init__(self, address: str, *, secure: bool = False) -> None:
        self.target = _name(address, secure)
        self._address = address
        self._secure = secure
        self._channel: Any = None
        self._methods: dict[str, Callable[..., Any]] = {}

    async def handle_async(self, call: Call) -> Reply:
        """Send one call and await its answer; errors as `GrpcTransport.handle`."""
        exchange = encode(call)
        try:
            data = await self._method(exchange.method)(exchange.payload, timeout=call.timeout_s)
        except grpc.RpcError as error:
            raise _translate(error, self.target, call.timeout_s) from error
        return exchange.decode(data)

    def _method(self, name: str) -> Callable[..., Any]:
        if self._channel is None:
            options = _options(self._address)
            self._channel = (
                grpc.aio.secure_channel(self._address, grpc.ssl_channel_credentials(), options)
                if self._secure
                else grpc.aio.insecure_channel(self._address, options)
            )
        if name not in self._methods:
            self._methods[name] = self._channel.unary_unary(name)
        return self._methods[name]

    async def aclose(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()


def _name(address: str, secure: bool) -> str:
    if address.startswith("unix:"):
        return address
    return f"grpc{'s' if secure else ''}://{address}"


def _translate(error: Any, target: str, timeout_s: float | None) -> MoxserveError:
    status = error.code().name
    details = re.sub(r"\s+", " ", error.details() or "").strip()
    if status == "UNAVAILABLE":
        return _unreachable(details, target)
    if status == "DEADLINE_EXCEEDED":
        return overdue(target, timeout_s)
    return refused(target, status, details)


def _unreachable(details: str, target: str) -> ServerUnreachableError:
    """Tell a server that says UNAVAILABLE from an address where nobody speaks gRPC."""
    if "http1" in details.lower() or "http/1" in details.lower():
        return ServerUnreachableError(
            f"{target} speaks HTTP/1, not gRPC", hint=f"for REST write http://{target.partition('://')[2]} ({PORTS})"
        )
    if any(mark in details.lower() for mark in _OWN_WORDS):
        reason = next((r for r in _REASONS if r.lower() in details.lower()), details)
        return nobody_answers(target, reason, "gRPC")
    return unavailable(target, details)
