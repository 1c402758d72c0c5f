"""The gRPC services of TensorFlow Serving, as generic handlers on our own messages, on the server's event loop.

Requests arrive as bytes and are parsed in the handler, so that bytes which are no message get INVALID_ARGUMENT with a
reason. Answers leave as bytes. No generated stubs are needed, and the official ones work as clients. gRPC cancels the
coroutine of a caller that has left.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from moxserve.errors import InvalidArgument, MoxserveError, Unavailable, status_name
from moxserve.protocol import messages
from moxserve.protocol.classify import fill_classification, fill_regression
from moxserve.protocol.examples import serialized_examples
from moxserve.protocol.predict_wire import PredictMessage, read_predict, write_predict_response
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.classify import Classification, Task
from moxserve.serving.dataplane import DataPlane
from moxserve.serving.execution import RequestContext
from moxserve.serving.grpc.observed import begin_call
from moxserve.serving.grpc.options import GrpcOptions
from moxserve.serving.grpc.streams import Stream, ending_with
from moxserve.serving.grpc.tls import credentials
from moxserve.serving.metrics import ServingMetrics, status_of
from moxserve.serving.observe import Recorder, RequestRecord
from moxserve.types import ModelRef

__all__ = ["GrpcServer", "context_of"]

logger = logging.getLogger(__name__)

_MAX_MESSAGE = 1024
_CUT = "...TRUNCATED"
_NO_DEADLINE_S = 1e8
# One change is made at a time; so many may wait for it, each until its deadline.
_RELOADS = 8
_ARGUMENTS = {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    # A second server on this port must fail, not share its requests by chance.
    "grpc.so_reuseport": 0,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_PREDICTION = "tensorflow.serving.PredictionService"
_MODEL = "tensorflow.serving.ModelService"

Method = Callable[[bytes, Any], Awaitable[bytes]]
Reload = Callable[[Any, "float | None"], None]


@dataclass(slots=True)
class _Call:
    """What a request turned out to ask for, as metrics tell it."""

    model: str = ""


class GrpcServer:
    """A gRPC server on one or more addresses. Made, used and stopped on the event loop.

    Args:
        dataplane: that answers.
        options: encoding, gRPC's own arguments, certificates.
        reload: puts a ModelServerConfig message in effect within the time that the caller has left, in s; may block.
        metrics: where requests are counted.
        recorder: where each request is told; None for nowhere.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        options: GrpcOptions,
        reload: Reload,
        metrics: ServingMetrics,
        recorder: Recorder | None = None,
    ) -> None:
        self._dataplane = dataplane
        self._recorder = recorder or Recorder()
        self._metrics = metrics
        self._options = options
        self._reload_config = reload
        # Not the loop's own threads, which pages and bodies need: a change takes minutes, and others wait for it.
        self._reloads = ThreadPoolExecutor(_RELOADS, thread_name_prefix="moxserve-reload")
        self._in_flight = 0
        self._names: list[str] = []
        self._stopping = asyncio.Event()
        self._server = grpc.aio.server(options=list({**_ARGUMENTS, **dict(options.channel_arguments)}.items()))
        self._credentials = credentials(options.tls) if options.tls else None
        for service, methods in self._services().items():
            self.add_service(service, methods)
        self._health = _health_service(self._server, dataplane) if options.health else None

    def add_service(
        self, service: str, methods: Mapping[str, Method], streams: Mapping[str, Stream] | None = None
    ) -> None:
        """Offer a service more; before `start`.

        Args:
            service: full name.
            methods: unary methods, by name. An error of ours that one raises becomes the status of the call.
            streams: methods that take and give streams, by name; they see their requests end when the server stops.
        """
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._guarded(f"/{service}/{name}", method))
            for name, method in methods.items()
        }
        handlers |= {
            name: grpc.stream_stream_rpc_method_handler(ending_with(self._stopping, stream))
            for name, stream in (streams or {}).items()
        }
        self._names.append(service)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _services(self) -> Mapping[str, Mapping[str, Method]]:
        return {
            _PREDICTION: {
                "Predict": self._counted("Predict", self._predict),
                "GetModelMetadata": self._metadata,
                "Classify": self._counted("Classify", self._classify),
                "Regress": self._counted("Regress", self._regress),
                "MultiInference": self._multi_inference,
            },
            _MODEL: {
                "GetModelStatus": self._status,
                "HandleReloadConfigRequest": self._reload,
            },
        }

    def listen(self, address: str) -> int:
        """Bind an address, `host:port` or `unix:path`; port 0 lets the system choose.

        Returns:
            The real port; 1 for a UNIX socket.

        Raises:
            Unavailable: it cannot be bound.
        """
        try:
            if self._credentials is None:
                port: int = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise Unavailable(
                f"cannot listen for gRPC at {address}: the address is in use or not ours",
                hint="stop the other server, or choose another --port",
            )
        return port

    async def start(self) -> None:
        """Begin to answer."""
        if self._options.reflection:
            self._offer_reflection()
        if self._health is not None:
            self._health.start()
        await self._server.start()

    async def stop(self, grace_s: float) -> bool:
        """Refuse new requests at once and let those in flight finish.

        Args:
            grace_s: how long they may take; then they are cancelled.

        Returns:
            Whether all of them finished in time.
        """
        if self._health is not None:
            self._health.stop()
        self._stopping.set()
        deadline = time.monotonic() + grace_s
        await self._server.stop(grace_s)
        self._reloads.shutdown(wait=False, cancel_futures=True)
        return self._in_flight == 0 and (grace_s <= 0 or time.monotonic() < deadline)

    def _offer_reflection(self) -> None:
        if not all(map(importlib.util.find_spec, ("grpc_reflection", "grpc_health"))):
            logger.info("no server reflection: grpcio-reflection or grpcio-health-checking is not installed")
            return
        # Imported here: its package is needed only by who wants the service.
        from moxserve.serving.grpc.reflection import SERVICES, reflection_stream

        stream = reflection_stream([*self._names, *SERVICES, *(["grpc.health.v1.Health"] if self._health else [])])
        for service in SERVICES:
            self.add_service(service, {}, {"ServerReflectionInfo": stream})

    # Methods

    def _counted(self, api: str, method: Callable[[bytes, Any, _Call], Awaitable[bytes]]) -> Method:
        """Count the requests of a method by how it ends."""

        async def handle(data: bytes, context: Any) -> bytes:
            began = time.perf_counter()
            call, status = _Call(), "OK"
            try:
                return await method(data, context, call)
            except asyncio.CancelledError:
                status = "CANCELLED"
                raise
            except Exception as error:
                status = status_of(error)
                raise
            finally:
                seconds = time.perf_counter() - began
                self._metrics.request(call.model, status, api=api, entrypoint="GRPC", seconds=seconds)

        return handle

    def _guarded(self, name: str, method: Method) -> Method:
        """Map errors to statuses. What is no error of ours is a bug: it is logged, and told as INTERNAL."""

        async def handle(data: bytes, context: Any) -> bytes:
            record = begin_call(name, len(data), context, active=self._recorder.active)
            self._in_flight += 1
            try:
                answer = await method(data, context)
                if record is not None:
                    self._tell(record, 0, len(answer))
                return answer
            except asyncio.CancelledError:
                if record is not None:
                    self._tell(record, grpc.StatusCode.CANCELLED.value[0])
                raise
            except MoxserveError as error:
                code, message = error.grpc_code, str(error)
            except Exception as error:
                logger.exception("a gRPC request failed")
                code, message = grpc.StatusCode.INTERNAL.value[0], f"{type(error).__name__}: {error}"
            finally:
                self._in_flight -= 1
            if record is not None:
                self._tell(record, code)
            await context.abort(_CODES[code], _shortened(message))
            return b""

        return handle

    def _tell(self, record: RequestRecord, code: int, response_bytes: int = 0) -> None:
        record.end(status_name(code), code, response_bytes)
        self._recorder.take(record)

    async def _predict(self, data: bytes, context: Any, call: _Call) -> bytes:
        request = read_predict(data)
        call.model = request.model
        if not request.has_spec:
            raise InvalidArgument("Missing ModelSpec")
        prediction = await self._dataplane.predict(
            ModelRef(request.model, request.version, request.label),
            request.signature_name,
            lambda signature: _decode(request, signature),
            request.output_filter,
            context_of(context),
        )
        return write_predict_response(
            prediction.name,
            prediction.version,
            prediction.signature,
            prediction.outputs,
            typed=not self._options.tensor_content,
        )

    async def _classify(self, data: bytes, context: Any, call: _Call) -> bytes:
        request = _parse(messages.ClassificationRequest, data)
        call.model = request.model_spec.name
        inferred = await self._dataplane.classify(
            _ref(request),
            request.model_spec.signature_name,
            lambda: serialized_examples(request.input),
            context_of(context),
        )
        response = messages.ClassificationResponse()
        _fill_spec(response.model_spec, inferred.name, inferred.version, inferred.signature)
        fill_classification(response.result, inferred.result.classes, inferred.result.scores)
        return response.SerializeToString()

    async def _regress(self, data: bytes, context: Any, call: _Call) -> bytes:
        request = _parse(messages.RegressionRequest, data)
        call.model = request.model_spec.name
        inferred = await self._dataplane.regress(
            _ref(request),
            request.model_spec.signature_name,
            lambda: serialized_examples(request.input),
            context_of(context),
        )
        response = messages.RegressionResponse()
        _fill_spec(response.model_spec, inferred.name, inferred.version, inferred.signature)
        fill_regression(response.result, inferred.result.values)
        return response.SerializeToString()

    async def _multi_inference(self, data: bytes, context: Any) -> bytes:
        request = _parse(messages.MultiInferenceRequest, data)
        tasks = [Task(t.model_spec.name, t.model_spec.signature_name, t.method_name) for t in request.tasks]
        # The first task tells the version for all of them.
        ref = _ref(request.tasks[0]) if tasks and request.tasks[0].HasField("model_spec") else ModelRef("")
        answers = await self._dataplane.multi_inference(
            ref, tasks, lambda: serialized_examples(request.input), context_of(context)
        )
        response = messages.MultiInferenceResponse()
        for inferred in answers:
            entry = response.results.add()
            _fill_spec(entry.model_spec, inferred.name, inferred.version, inferred.signature)
            if isinstance(inferred.result, Classification):
                fill_classification(entry.classification_result, inferred.result.classes, inferred.result.scores)
            else:
                fill_regression(entry.regression_result, inferred.result.values)
        return response.SerializeToString()

    async def _metadata(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002 - gRPC gives it
        request = _parse(messages.GetModelMetadataRequest, data)
        ref = _ref(request)
        if not request.metadata_field:
            raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise InvalidArgument(f"Metadata field {field} is not supported")
        metadata = self._dataplane.metadata(ref)
        response = messages.GetModelMetadataResponse()
        _fill_spec(response.model_spec, metadata.name, metadata.version)
        response.metadata["signature_def"].Pack(metadata.signature_defs)
        return response.SerializeToString()

    async def _status(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002 - gRPC gives it
        request = _parse(messages.GetModelStatusRequest, data)
        return self._dataplane.status_response(_ref(request)).SerializeToString()

    async def _reload(self, data: bytes, context: Any) -> bytes:
        request = _parse(messages.ReloadConfigRequest, data)
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidArgument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        before = {name: self._metrics.first_value(name) for name in request.metric_names}
        left_s = _left_s(context)
        # A caller that leaves does not stop the change: what was begun is put in effect or refused as a whole.
        deadline = None if left_s is None else time.monotonic() + left_s

        def work() -> None:
            self._reload_config(request.config, None if deadline is None else max(0.0, deadline - time.monotonic()))

        change = asyncio.get_running_loop().run_in_executor(self._reloads, work)
        # What it is refused with is told to the caller; when that has left, nobody else asks for it.
        change.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(change)
        response = messages.ReloadConfigResponse()
        response.status.error_code = 0
        for name, value in before.items():
            response.metric.add(name=name, int64_value_increase=self._metrics.first_value(name) - value)
        return response.SerializeToString()


def _decode(request: PredictMessage, call: CallSignature) -> dict[str, np.ndarray]:
    call.match_inputs(request.aliases)
    return request.tensors()


def _parse(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        name = message_class.DESCRIPTOR.name
        raise InvalidArgument(f"the {len(data)} bytes of the request are no {name}: {error}") from None


def _ref(request: Any) -> ModelRef:
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    spec = request.model_spec
    version = spec.version.value if spec.HasField("version") else None
    return ModelRef(spec.name, version, spec.version_label or None)


def _left_s(context: Any) -> float | None:
    """Return the time that the caller gives, in s; None when it waits for as long as it takes."""
    left_s: float | None = context.time_remaining()
    # A call without a deadline has one in hundreds of years, which locks and clocks do not take.
    return None if left_s is None or left_s > _NO_DEADLINE_S else left_s


def context_of(context: Any) -> RequestContext:
    """Tell of gRPC's context of a call how long its caller waits."""
    left_s = _left_s(context)
    return RequestContext(math.inf if left_s is None else time.monotonic() + left_s)


def _fill_spec(spec: Any, name: str, version: int, signature: str = "") -> None:
    spec.name = name
    spec.version.value = version
    spec.signature_name = signature


def _shortened(message: str) -> str:
    raw = message.encode()
    if len(raw) <= _MAX_MESSAGE:
        return message
    return raw[: _MAX_MESSAGE - len(_CUT)].decode(errors="ignore") + _CUT


def _health_service(server: Any, dataplane: DataPlane) -> Any:
    # Imported here: its package is needed only by who wants the service.
    from moxserve.serving.grpc.health import HealthService

    return HealthService(server, dataplane.available, dataplane.ready)
