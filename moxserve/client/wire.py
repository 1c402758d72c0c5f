"""Calls as bytes of TensorFlow Serving's gRPC services, and answers back. No sockets; shared by sync and async.

A PredictRequest is joined by hand from the tensors' own memory: protobuf would copy each tensor three times on the way
to the socket, which costs more than all the rest for an image of 600 KB. Headers still come from the real messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moxserve.client.calls import (
    Array,
    Call,
    ListCall,
    ListedModel,
    ListReply,
    MetadataCall,
    ModelMetadata,
    PredictCall,
    PredictReply,
    ReloadCall,
    ReloadReply,
    Reply,
    StatusReply,
    VersionStatus,
)
from moxserve.errors import InvalidArgument, UsageError
from moxserve.protocol import messages
from moxserve.protocol.metadata import signatures_from_map
from moxserve.protocol.predict_wire import read_predict_response, write_predict_request
from moxserve.types import ModelRef

__all__ = ["Exchange", "encode"]

_SERVICE = "/tensorflow.serving."


@dataclass(frozen=True, slots=True)
class Exchange:
    """One unary gRPC call.

    Attributes:
        method: full path, such as `/tensorflow.serving.PredictionService/Predict`.
        payload: the request's bytes.
        decode: turns the answer's bytes into the reply.
    """

    method: str
    payload: bytes
    decode: Callable[[bytes], Reply]


def encode(call: Call) -> Exchange:
    """Turn a call into its bytes.

    Raises:
        UsageError: an input is of a type that no tensor carries.
    """
    if isinstance(call, PredictCall):
        return Exchange(f"{_SERVICE}PredictionService/Predict", _predict_request(call), _predict_reply)
    if isinstance(call, MetadataCall):
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        _fill_spec(request.model_spec, call.model)
        payload = request.SerializeToString()
        return Exchange(f"{_SERVICE}PredictionService/GetModelMetadata", payload, _metadata_reply)
    if isinstance(call, ReloadCall):
        reload = messages.ReloadConfigRequest()
        reload.config.MergeFromString(call.config)
        payload = reload.SerializeToString()
        return Exchange(f"{_SERVICE}ModelService/HandleReloadConfigRequest", payload, lambda _: ReloadReply())
    if isinstance(call, ListCall):
        return Exchange("/inference.GRPCInferenceService/RepositoryIndex", b"", _list_reply)
    request = messages.GetModelStatusRequest()
    _fill_spec(request.model_spec, call.model)
    return Exchange(f"{_SERVICE}ModelService/GetModelStatus", request.SerializeToString(), _status_reply)


def _fill_spec(spec: Any, model: ModelRef) -> None:
    spec.name = model.name
    if model.version is not None:
        spec.version.value = model.version
    elif model.label is not None:
        spec.version_label = model.label


def _predict_request(call: PredictCall) -> bytes:
    try:
        return write_predict_request(call.model, call.signature_name, call.inputs, call.outputs or ())
    except InvalidArgument as error:
        raise UsageError(error.message) from None


def _predict_reply(data: bytes) -> PredictReply:
    response = read_predict_response(data)
    outputs = response.tensors()
    return PredictReply({alias: _writable(outputs[alias]) for alias in sorted(outputs)}, response.version)


def _writable(array: Array) -> Array:
    return array if array.flags.writeable else array.copy()


def _metadata_reply(data: bytes) -> ModelMetadata:
    response = messages.GetModelMetadataResponse.FromString(data)
    found = messages.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    spec = response.model_spec
    version = spec.version.value if spec.HasField("version") else None
    return ModelMetadata(spec.name, version, signatures_from_map(found))


def _status_reply(data: bytes) -> StatusReply:
    response = messages.GetModelStatusResponse.FromString(data)
    return StatusReply([_version_status(status) for status in response.model_version_status])


def _list_reply(data: bytes) -> ListReply:
    names = (model.name for model in messages.by_full_name("inference.RepositoryIndexResponse").FromString(data).models)
    return ListReply([ListedModel(name) for name in dict.fromkeys(names)])  # one entry a version there, once here


def _version_status(status: Any) -> VersionStatus:
    state = messages.enum_name("tensorflow.serving.ModelVersionStatus.State", status.state)
    code = messages.enum_name("tensorflow.error.Code", status.status.error_code)
    return VersionStatus(status.version, state, code, status.status.error_message)
