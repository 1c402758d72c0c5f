"""The client for asyncio: the same methods as `Client`, awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from moxserve.client.calls import (
    UNSET,
    Array,
    Call,
    ListedModel,
    ModelMetadata,
    Reply,
    Retry,
    Timeout,
    VersionStatus,
)
from moxserve.client.flow import Flow, Flows, Pause, Settings
from moxserve.client.transport import AsyncTransport, Target, Transport, parse_target, transport_for
from moxserve.errors import ClientError, MoxserveError
from moxserve.types import DEFAULT_SIGNATURE, ModelRef

__all__ = ["AsyncClient"]

T = TypeVar("T")


class _InThreads:
    """A blocking transport, called in threads of the event loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def target(self) -> str:
        return self._transport.target

    async def handle_async(self, call: Call) -> Reply:
        return await asyncio.to_thread(self._transport.handle, call)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._transport.close)


def _async_transport_for(target: Target) -> AsyncTransport:
    if target.kind == "grpc":
        from moxserve.client.grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(target.address, secure=target.secure)
    if target.kind == "rest":
        from moxserve.client.rest import AsyncRestTransport

        return AsyncRestTransport(target.address)
    return _InThreads(transport_for(target))


class AsyncClient:
    """Talks to a model server or to a model on disk, from one event loop.

    Args:
        target: as for `Client`; a blocking transport is called in threads.
        timeout_s: seconds for each call, repetitions included; None is no limit.
        check: compare names, dtypes and shapes with the model's signature before sending.
        retry: how a server that does not answer is asked again; `Retry(attempts=0)` turns that off.

    Raises:
        UsageError: the target or a setting is wrong. Nothing is connected before the first call.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | AsyncTransport | Transport,
        *,
        timeout_s: float | None = 60.0,
        check: bool = True,
        retry: Retry = Retry(),  # noqa: B008 - frozen
    ) -> None:
        self._transport: AsyncTransport
        if isinstance(target, (str, os.PathLike)):
            self._transport = _async_transport_for(parse_target(target))
        else:
            self._transport = target if isinstance(target, AsyncTransport) else _InThreads(target)
        needs_signature = getattr(self._transport, "needs_signature", False)
        self._flows = Flows(Settings(timeout_s, check, retry), needs_signature=needs_signature)
        self._closed = False

    @property
    def target(self) -> str:
        """The address, as messages show it."""
        return self._transport.target

    async def predict(
        self,
        model: str | ModelRef,
        inputs: Any,
        *,
        signature: str = DEFAULT_SIGNATURE,
        outputs: Sequence[str] | None = None,
        timeout_s: Timeout = UNSET,
    ) -> dict[str, Array]:
        """Ask a model for its outputs; arguments, result and errors as `Client.predict`."""
        return await self._drive(self._flows.predict(model, inputs, signature, outputs, timeout_s))

    async def metadata(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> ModelMetadata:
        """Fetch a model's version and signatures, always anew, as `Client.metadata`."""
        return await self._drive(self._flows.metadata(model, timeout_s))

    async def status(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> list[VersionStatus]:
        """Fetch the states of a model's versions, as `Client.status`."""
        return await self._drive(self._flows.status(model, timeout_s))

    async def models(self, *, timeout_s: Timeout = UNSET) -> list[ListedModel]:
        """Fetch the models of a server, as `Client.models`."""
        return await self._drive(self._flows.models(timeout_s))

    async def reload(self, config: Any, *, timeout_s: Timeout = UNSET) -> None:
        """Have a server serve other models, as `Client.reload`."""
        await self._drive(self._flows.reload(config, timeout_s))

    async def wait_ready(self, model: str | ModelRef, timeout_s: float | None = 60.0) -> int:
        """Wait until a version of a model can answer, as `Client.wait_ready`."""
        return await self._drive(self._flows.wait_ready(model, timeout_s))

    async def _drive(self, flow: Flow[T]) -> T:
        if self._closed:
            raise ClientError(f"the client of {self.target} is closed")
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._step(step)
                except MoxserveError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _step(self, step: Call | Pause) -> Reply | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await self._transport.handle_async(step)

    async def aclose(self) -> None:
        """Release the connections; harmless when done before."""
        self._closed = True
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r}{', closed' if self._closed else ''})"
