"""The seam of the client: one method that turns a call into its reply. Implemented by grpc, rest, local and mock.

A transport raises `ServerUnreachableError` when nobody answers or the server is not ready, and `RequestError` with the
status name for every other refusal. It neither retries nor caches nor checks: `flow.py` does that once for all of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from moxserve.client.calls import Call, Reply
from moxserve.errors import UsageError

__all__ = ["AsyncTransport", "Target", "Transport", "parse_target", "transport_for"]

_SCHEMES = ("grpc", "grpcs", "http", "https", "local", "unix")
_EXPECTED = "expected grpc://HOST:PORT, HOST:PORT, http://HOST:PORT, local:DIR or a model directory"


@runtime_checkable
class Transport(Protocol):
    """Carries calls to a model. Used from several threads at once.

    A transport that cannot read an answer without the call's signature has an attribute `needs_signature = True`.
    """

    @property
    def target(self) -> str:
        """The address, for messages."""
        ...

    def handle(self, call: Call) -> Reply:
        """Answer one call: PredictReply, ModelMetadata or StatusReply, as asked.

        Raises:
            ServerUnreachableError: nobody answers, or the server is not ready.
            RequestError: the server refused, or did not answer in time.
        """
        ...

    def close(self) -> None:
        """Release connections; harmless when done before."""
        ...


@runtime_checkable
class AsyncTransport(Protocol):
    """The same for asyncio. Bound to the event loop that makes the first call."""

    @property
    def target(self) -> str:
        """The address, for messages."""
        ...

    async def handle_async(self, call: Call) -> Reply:
        """Answer one call, as `Transport.handle` does."""
        ...

    async def aclose(self) -> None:
        """Release connections; harmless when done before."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is.

    Attributes:
        kind: `grpc`, `rest` or `local`.
        address: `host:port` or `unix:PATH` for gRPC, the base URL for REST, a directory for local.
        secure: whether gRPC uses TLS.
    """

    kind: str
    address: str
    secure: bool = False

    def __str__(self) -> str:
        if self.kind == "grpc":
            return self.address if self.address.startswith("unix:") else f"grpc{'s' * self.secure}://{self.address}"
        return f"local:{self.address}" if self.kind == "local" else self.address


def parse_target(text: str | os.PathLike[str]) -> Target:
    """Read an address.

    Args:
        text: `grpc://HOST:PORT`, `grpcs://HOST:PORT` (TLS), `HOST:PORT` (gRPC), `unix:PATH` (gRPC on a socket),
            `http://HOST:PORT[/PREFIX]`, `https://…`, `local:DIR`, or a path to a directory.

    Raises:
        UsageError: it is none of those.
    """
    name = os.fspath(text)
    scheme, sep, rest = name.partition("://")
    if sep:
        if scheme in ("http", "https") and rest.strip("/"):
            return Target("rest", name.rstrip("/"))
        if scheme in ("grpc", "grpcs"):
            return Target("grpc", _host_port(rest.rstrip("/"), name), scheme == "grpcs")
        raise UsageError(f"{name!r}: {_EXPECTED}; schemes known: {', '.join(_SCHEMES)}")
    if name.startswith("local:"):
        return Target("local", _directory(name[len("local:") :], name))
    if name.startswith("unix:"):
        return Target("grpc", name)
    if os.path.isdir(name):
        return Target("local", name)
    if "/" in name or ":" not in name:
        raise UsageError(f"{name!r} is no directory and no address: {_EXPECTED}")
    return Target("grpc", _host_port(name, name))


def _host_port(text: str, given: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{given!r}: {_EXPECTED}, with a port from 1 to 65535")
    return text


def _directory(path: str, given: str) -> str:
    if not os.path.isdir(path):
        raise UsageError(f"{given!r}: no such directory: {path!r}")
    return path


def is_loopback(address: str) -> bool:
    """Tell whether an address is this machine, which no proxy of the environment can reach for us."""
    host = address.partition("://")[2] or address
    host = host.partition("/")[0]
    host = host[: host.rindex(":")] if ":" in host and not host.endswith("]") else host
    return host == "localhost" or host in ("[::1]", "0.0.0.0", "[::]") or host.startswith("127.")


def transport_for(target: Target) -> Transport:
    """Make the transport of a target; only its module is imported."""
    if target.kind == "grpc":
        from moxserve.client.grpc import GrpcTransport

        return GrpcTransport(target.address, secure=target.secure)
    if target.kind == "rest":
        from moxserve.client.rest import RestTransport

        return RestTransport(target.address)
    from moxserve.client.local import LocalTransport

    return LocalTransport(target.address)
