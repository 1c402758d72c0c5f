"""The standard health service, telling what can be asked for at the moment.

`` (the server), `PredictionService` and `ModelService` (also by their full names) are SERVING while a model has a
version that answers, or while no model is configured; a model's own name while that model has one. The original tells
SERVING for ever, so that a server whose models have all gone keeps its traffic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

__all__ = ["HealthService"]

_SERVER = (
    "",
    "ModelService",
    "PredictionService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
)
_LOOK_S = 0.2


class HealthService:
    """Keeps the statuses up to date, also for those who watch them.

    Args:
        server: the grpc.Server that offers it.
        available: gives the names of the models, and whether each has a version that answers.
    """

    def __init__(self, server: Any, available: Callable[[], Mapping[str, bool]]) -> None:
        self._available = available
        self._servicer = _Servicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        self._told: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moxserve-health", daemon=True)

    def start(self) -> None:
        """Tell the first statuses and begin to look for changes."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Tell NOT_SERVING for good, and end all watches: they would keep a server from stopping."""
        self._stopping.set()
        self._servicer.enter_graceful_shutdown()
        self._servicer.end_watches()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        reply = health_pb2.HealthCheckResponse
        models = self._available()
        now = {name: reply.SERVING if there else reply.NOT_SERVING for name, there in models.items()}
        # A model that has left the configuration is no service any more.
        now.update({name: reply.SERVICE_UNKNOWN for name in self._told.keys() - now.keys()})
        server = reply.SERVING if not models or any(models.values()) else reply.NOT_SERVING
        now.update(dict.fromkeys(_SERVER, server))
        for name, status in now.items():
            if self._told.get(name) != status:
                self._servicer.set(name, status)
        self._told = now


class _Servicer(health.HealthServicer):
    def __init__(self) -> None:
        super().__init__()
        self._watches_lock = threading.Lock()
        self._watches: set[Callable[[Any], None]] = set()

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:  # noqa: N802 - gRPC's name
        with self._watches_lock:
            self._watches.add(send_response_callback)
        context.add_callback(lambda: self._forget(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    def _forget(self, callback: Callable[[Any], None]) -> None:
        with self._watches_lock:
            self._watches.discard(callback)

    def end_watches(self) -> None:
        with self._watches_lock:
            watches = list(self._watches)
        for send in watches:
            send(None)
