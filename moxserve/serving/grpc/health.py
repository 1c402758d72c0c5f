"""The standard health service, telling what can be asked for at the moment.

`` (the server), `PredictionService`, `ModelService` (also by their full names) and `inference.GRPCInferenceService` are
SERVING while the server is ready: its start is over, and a model has a version that answers, or no model is configured.
A model's own name is SERVING while that model has one, else NOT_SERVING: also while it is being loaded. The original
tells SERVING for ever, so that a server whose models have all gone keeps its traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["HealthService"]

_SERVER = (
    "",
    "ModelService",
    "PredictionService",
    "inference.GRPCInferenceService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
)
_LOOK_S = 0.2


class HealthService:
    """Keeps the statuses up to date, also for those who watch them. Lives on the event loop.

    Args:
        server: the grpc.aio.Server that offers it.
        available: gives the names of the models, and whether each has a version that answers.
        ready: tells whether the server is ready.
    """

    def __init__(self, server: Any, available: Callable[[], Mapping[str, bool]], ready: Callable[[], bool]) -> None:
        self._available = available
        self._ready = ready
        self._servicer = _Servicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        self._known: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tell the first statuses and begin to look for changes."""
        self._look()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Tell NOT_SERVING for good, and end all watches: they would keep a server from stopping."""
        if self._task is not None:
            self._task.cancel()
        self._servicer.end()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._look()

    def _look(self) -> None:
        reply = health_pb2.HealthCheckResponse
        models = self._available()
        now = {name: reply.SERVING if there else reply.NOT_SERVING for name, there in models.items()}
        # A model that has left the configuration is no service any more.
        self._known |= models.keys()
        now.update(dict.fromkeys(self._known - models.keys(), reply.SERVICE_UNKNOWN))
        now.update(dict.fromkeys(_SERVER, reply.SERVING if self._ready() else reply.NOT_SERVING))
        self._servicer.tell(now)


class _Servicer(health_pb2_grpc.HealthServicer):
    def __init__(self) -> None:
        self._statuses: Mapping[str, int] = {}
        self._changed = asyncio.Event()
        self._ended = False

    def tell(self, statuses: Mapping[str, int]) -> None:
        if statuses != self._statuses and not self._ended:
            self._statuses = statuses
            self._wake()

    def end(self) -> None:
        self.tell(dict.fromkeys(self._statuses, health_pb2.HealthCheckResponse.NOT_SERVING))
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service is named {request.service!r:.200}")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's name
        replies = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=replies)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802 - gRPC's name
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._ended:
                return
            await changed.wait()
