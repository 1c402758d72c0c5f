"""The gRPC services of TensorFlow Serving, as generic handlers on our own messages.

Requests arrive as bytes and are parsed in the handler, so that bytes which are no message get INVALID_ARGUMENT with a
reason. Answers leave as bytes. No generated stubs are needed, and the official ones work as clients.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from moxserve.errors import DeadlineExceeded, InvalidArgument, MoxserveError, Unavailable
from moxserve.protocol import messages
from moxserve.protocol.classify import fill_classification, fill_regression
from moxserve.protocol.examples import serialized_examples
from moxserve.protocol.tensors import from_proto, to_proto
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.classify import Classification, Task
from moxserve.serving.dataplane import DataPlane, Prediction
from moxserve.serving.grpc.options import GrpcOptions
from moxserve.serving.grpc.tls import credentials
from moxserve.serving.metrics import ServingMetrics, status_of
from moxserve.types import ModelRef

__all__ = ["GrpcServer"]

logger = logging.getLogger(__name__)

_MAX_MESSAGE = 1024
_CUT = "...TRUNCATED"
_NO_DEADLINE_S = 1e8
_ARGUMENTS = {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    # A second server on this port must fail, not share its requests by chance.
    "grpc.so_reuseport": 0,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_PREDICTION = "tensorflow.serving.PredictionService"
_MODEL = "tensorflow.serving.ModelService"

Method = Callable[[bytes, Any], bytes]
Reload = Callable[[Any, "float | None"], None]


class GrpcServer:
    """A gRPC server on one or more addresses.

    Args:
        dataplane: that answers.
        options: threads and encoding.
        reload: puts a ModelServerConfig message in effect within the time that the caller has left, in s.
        metrics: where requests are counted.
    """

    def __init__(self, dataplane: DataPlane, options: GrpcOptions, reload: Reload, metrics: ServingMetrics) -> None:
        self._dataplane = dataplane
        self._metrics = metrics
        self._options = options
        self._reload_config = reload
        self._pool = ThreadPoolExecutor(options.max_threads, thread_name_prefix="moxserve-grpc")
        self._server = grpc.server(self._pool, options=list({**_ARGUMENTS, **dict(options.channel_arguments)}.items()))
        self._credentials = credentials(options.tls) if options.tls else None
        for service, methods in self._services().items():
            handlers = {name: grpc.unary_unary_rpc_method_handler(_guarded(m)) for name, m in methods.items()}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._health = _health_service(self._server, dataplane) if options.health else None

    def _services(self) -> Mapping[str, Mapping[str, Method]]:
        return {
            _PREDICTION: {
                "Predict": self._counted("Predict", messages.PredictRequest, self._predict),
                "GetModelMetadata": self._metadata,
                "Classify": self._counted("Classify", messages.ClassificationRequest, self._classify),
                "Regress": self._counted("Regress", messages.RegressionRequest, self._regress),
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

    def start(self) -> None:
        """Begin to answer."""
        if self._health is not None:
            self._health.start()
        self._server.start()

    def stop(self, grace_s: float) -> bool:
        """Refuse new requests at once and let those in flight finish.

        Args:
            grace_s: how long they may take; then they are cancelled.

        Returns:
            Whether all of them finished in time.
        """
        if self._health is not None:
            self._health.stop()
        done: threading.Event = self._server.stop(grace_s)
        finished = done.wait(grace_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return finished

    # Methods

    def _counted(self, api: str, message_class: Any, method: Callable[[Any, Any], bytes]) -> Method:
        """Read the request for a method, and count it by how the method ends."""

        def handle(data: bytes, context: Any) -> bytes:
            began = time.perf_counter()
            model, status = "", "OK"
            try:
                request = _parse(message_class, data)
                model = request.model_spec.name
                return method(request, context)
            except Exception as error:
                status = status_of(error)
                raise
            finally:
                seconds = time.perf_counter() - began
                self._metrics.request(model, status, api=api, entrypoint="GRPC", seconds=seconds)

        return handle

    def _predict(self, request: Any, context: Any) -> bytes:
        ref = _ref(request)
        _check_deadline(context)
        prediction = self._dataplane.predict(
            ref, request.model_spec.signature_name, lambda call: _decode(request, call), request.output_filter
        )
        return self._encode(prediction)

    def _encode(self, prediction: Prediction) -> bytes:
        response = messages.PredictResponse()
        _fill_spec(response.model_spec, prediction.name, prediction.version, prediction.signature)
        typed = not self._options.tensor_content
        for alias, array in prediction.outputs.items():
            response.outputs[alias].CopyFrom(to_proto(array, typed=typed))
        return response.SerializeToString()

    def _classify(self, request: Any, context: Any) -> bytes:
        ref = _ref(request)
        _check_deadline(context)
        inferred = self._dataplane.classify(
            ref, request.model_spec.signature_name, lambda: serialized_examples(request.input)
        )
        response = messages.ClassificationResponse()
        _fill_spec(response.model_spec, inferred.name, inferred.version, inferred.signature)
        fill_classification(response.result, inferred.result.classes, inferred.result.scores)
        return response.SerializeToString()

    def _regress(self, request: Any, context: Any) -> bytes:
        ref = _ref(request)
        _check_deadline(context)
        inferred = self._dataplane.regress(
            ref, request.model_spec.signature_name, lambda: serialized_examples(request.input)
        )
        response = messages.RegressionResponse()
        _fill_spec(response.model_spec, inferred.name, inferred.version, inferred.signature)
        fill_regression(response.result, inferred.result.values)
        return response.SerializeToString()

    def _multi_inference(self, data: bytes, context: Any) -> bytes:
        request = _parse(messages.MultiInferenceRequest, data)
        tasks = [Task(t.model_spec.name, t.model_spec.signature_name, t.method_name) for t in request.tasks]
        # The first task tells the version for all of them.
        ref = _ref(request.tasks[0]) if tasks and request.tasks[0].HasField("model_spec") else ModelRef("")
        _check_deadline(context)
        response = messages.MultiInferenceResponse()
        for inferred in self._dataplane.multi_inference(ref, tasks, lambda: serialized_examples(request.input)):
            entry = response.results.add()
            _fill_spec(entry.model_spec, inferred.name, inferred.version, inferred.signature)
            if isinstance(inferred.result, Classification):
                fill_classification(entry.classification_result, inferred.result.classes, inferred.result.scores)
            else:
                fill_regression(entry.regression_result, inferred.result.values)
        return response.SerializeToString()

    def _metadata(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002 - gRPC gives it
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

    def _status(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002 - gRPC gives it
        request = _parse(messages.GetModelStatusRequest, data)
        return self._dataplane.status_response(_ref(request)).SerializeToString()

    def _reload(self, data: bytes, context: Any) -> bytes:
        request = _parse(messages.ReloadConfigRequest, data)
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidArgument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        before = {name: self._metrics.first_value(name) for name in request.metric_names}
        self._reload_config(request.config, _left_s(context))
        response = messages.ReloadConfigResponse()
        response.status.error_code = 0
        for name, value in before.items():
            response.metric.add(name=name, int64_value_increase=self._metrics.first_value(name) - value)
        return response.SerializeToString()


def _decode(request: Any, call: CallSignature) -> dict[str, np.ndarray]:
    call.match_inputs(request.inputs)
    inputs = {}
    for alias, proto in request.inputs.items():
        try:
            inputs[alias] = from_proto(proto)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor parsing error: {alias}: {error.message}") from None
        except (MemoryError, OverflowError, ValueError) as error:
            # A few bytes can ask for a tensor of any size: missing values are filled up.
            raise InvalidArgument(f"tensor parsing error: {alias}: {error}") from None
    return inputs


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


def _check_deadline(context: Any) -> None:
    left_s = _left_s(context)
    if left_s is not None and left_s <= 0:
        raise DeadlineExceeded("the deadline passed before the request was begun")


def _fill_spec(spec: Any, name: str, version: int, signature: str = "") -> None:
    spec.name = name
    spec.version.value = version
    spec.signature_name = signature


def _guarded(method: Method) -> Method:
    """Map errors to statuses. What is no error of ours is a bug: it is logged, and told as INTERNAL."""

    def handle(data: bytes, context: Any) -> bytes:
        try:
            return method(data, context)
        except MoxserveError as error:
            return _refuse(context, error.grpc_code, str(error))
        except Exception as error:
            logger.exception("a gRPC request failed")
            return _refuse(context, grpc.StatusCode.INTERNAL.value[0], f"{type(error).__name__}: {error}")

    return handle


def _refuse(context: Any, code: int, message: str) -> bytes:
    raw = message.encode()
    if len(raw) > _MAX_MESSAGE:
        message = raw[: _MAX_MESSAGE - len(_CUT)].decode(errors="ignore") + _CUT
    context.set_code(_CODES[code])
    context.set_details(message)
    return b""


def _health_service(server: Any, dataplane: DataPlane) -> Any:
    # Imported here: its package is needed only by who wants the service.
    from moxserve.serving.grpc.health import HealthService

    return HealthService(server, dataplane.available)
