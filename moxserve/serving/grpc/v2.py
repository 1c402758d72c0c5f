"""The gRPC service of the Open Inference Protocol; what it answers is decided in `serving.open_inference`.

Loading and unloading models, shared memory, traces and log settings are refused with a reason: the first two are up to
the configuration, the others are not offered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from moxserve.errors import Internal, MoxserveError, Unimplemented, status_name
from moxserve.protocol import v2_grpc
from moxserve.protocol.v2 import model_ref
from moxserve.serving.execution import RequestContext
from moxserve.serving.grpc.observed import begin_message
from moxserve.serving.grpc.streams import Stream
from moxserve.serving.metrics import ServingMetrics, status_of
from moxserve.serving.observe import Recorder
from moxserve.serving.open_inference import OpenInference
from moxserve.types import ModelRef

__all__ = ["InferenceService"]

logger = logging.getLogger(__name__)

# How many requests of one stream are worked on at once.
_STREAM_AHEAD = 64
_REFUSED = {
    "shared memory is not offered here; send tensors with the request": (
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
    ),
    "traces are set up when the server starts": ("TraceSetting",),
    "the log is set up when the server starts": ("LogSettings",),
}  # fmt: skip

Method = Callable[[bytes, Any], Awaitable[bytes]]


class InferenceService:
    """The methods of the service, bytes in and bytes out.

    Args:
        core: that answers.
        metrics: where requests are counted.
        context_of: tells of gRPC's context of a call how long its caller waits.
        recorder: where each request of a stream is told; None for nowhere.
    """

    SERVICE = "inference.GRPCInferenceService"

    def __init__(
        self,
        core: OpenInference,
        metrics: ServingMetrics,
        context_of: Callable[[Any], RequestContext],
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder or Recorder()
        self._core = core
        self._metrics = metrics
        self._context_of = context_of

    def methods(self) -> Mapping[str, Method]:
        """Return the unary methods by name."""
        told: dict[str, Callable[[bytes], bytes]] = {
            "ServerLive": lambda _: v2_grpc.from_record("ServerLiveResponse", {"live": True}),
            "ServerReady": lambda _: v2_grpc.from_record("ServerReadyResponse", {"ready": self._core.ready()}),
            "ServerMetadata": lambda _: v2_grpc.from_record("ServerMetadataResponse", self._core.server_metadata()),
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        told |= {name: _refusing(f"{name}: {why}") for why, names in _REFUSED.items() for name in names}
        return {"ModelInfer": self._infer} | {name: _method(answer) for name, answer in told.items()}

    def streams(self) -> Mapping[str, Stream]:
        """Return the streaming methods by name."""
        return {"ModelStreamInfer": self._stream}

    # Inference

    async def _infer(self, data: bytes, context: Any) -> bytes:
        return await self._answered(data, self._context_of(context))

    async def _answered(self, data: bytes, context: RequestContext) -> bytes:
        began = time.perf_counter()
        model, status = "", "OK"
        try:
            request = v2_grpc.infer_request(data)
            model = request.model.name
            return v2_grpc.infer_response(await self._core.infer(request, context))
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        except Exception as error:
            status = status_of(error)
            raise
        finally:
            seconds = time.perf_counter() - began
            self._metrics.request(model, status, api="ModelInfer", entrypoint="GRPC", seconds=seconds)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer the requests of a stream in their order. Several are worked on at once, and one may fail alone."""
        pending: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        tasks: set[asyncio.Task[bytes]] = set()
        room = asyncio.Semaphore(_STREAM_AHEAD)

        async def read() -> None:
            try:
                async for data in requests:
                    await room.acquire()
                    task = asyncio.ensure_future(self._streamed(data, context))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    pending.put_nowait(task)
            finally:
                pending.put_nowait(None)

        reader = asyncio.ensure_future(read())
        try:
            while (task := await pending.get()) is not None:
                yield await task
                room.release()
        finally:
            for left in (reader, *tasks):
                left.cancel()

    async def _streamed(self, data: bytes, context: Any) -> bytes:
        name = f"/{self.SERVICE}/ModelStreamInfer"
        record = begin_message(name, len(data), context, active=self._recorder.active)
        code = 0
        try:
            answer = v2_grpc.stream_response(await self._answered(data, self._context_of(context)))
        except MoxserveError as error:
            code, answer = error.grpc_code, v2_grpc.stream_error(data, str(error))
        except Exception as error:
            logger.exception("a request of a gRPC stream failed")
            code, answer = Internal.grpc_code, v2_grpc.stream_error(data, f"{type(error).__name__}: {error}")
        if record is not None:
            record.end(status_name(code), code, len(answer))
            self._recorder.take(record)
        return answer

    # The server

    def _index(self, data: bytes) -> bytes:
        request = v2_grpc.parse("RepositoryIndexRequest", data)
        return v2_grpc.from_record("RepositoryIndexResponse", {"models": self._core.index(ready_only=request.ready)})

    def _load(self, data: bytes) -> bytes:
        raise self._core.refuse_repository("load", v2_grpc.parse("RepositoryModelLoadRequest", data).model_name)

    def _unload(self, data: bytes) -> bytes:
        raise self._core.refuse_repository("unload", v2_grpc.parse("RepositoryModelUnloadRequest", data).model_name)

    # Models

    def _model_ready(self, data: bytes) -> bytes:
        return v2_grpc.from_record("ModelReadyResponse", {"ready": self._core.model_ready(_ref("ModelReady", data))})

    def _model_metadata(self, data: bytes) -> bytes:
        return v2_grpc.from_record("ModelMetadataResponse", self._core.model_metadata(_ref("ModelMetadata", data)))

    def _model_config(self, data: bytes) -> bytes:
        config = self._core.model_config(_ref("ModelConfig", data))
        return v2_grpc.from_record("ModelConfigResponse", {"config": config})

    def _model_statistics(self, data: bytes) -> bytes:
        ref = _ref("ModelStatistics", data)
        found = self._core.statistics(ref if ref.name else None)
        return v2_grpc.from_record("ModelStatisticsResponse", {"model_stats": found})


def _ref(method: str, data: bytes) -> ModelRef:
    request = v2_grpc.parse(f"{method}Request", data)
    return model_ref(request.name, request.version)


def _method(answer: Callable[[bytes], bytes]) -> Method:
    async def method(data: bytes, context: Any) -> bytes:  # noqa: ARG001 - gRPC gives it
        return answer(data)

    return method


def _refusing(reason: str) -> Callable[[bytes], bytes]:
    def refuse(data: bytes) -> bytes:  # noqa: ARG001 - as the others
        raise Unimplemented(reason)

    return refuse
