"""Messages of the Open Inference Protocol over gRPC: bytes to requests, answers to bytes. No sockets.

Tensors in `raw_input_contents`, one for each input, are preferred; typed `contents` are read too. Answers have
`raw_output_contents`, as Triton's; a request whose parameter `binary_data_output` is false is answered with typed
`contents` instead, which grpcurl and people can read. FP16 and BF16 have no typed form.

Raw tensors make up nearly all of a large message. They are taken out of it, and put into it, at the level of bytes:
protobuf would copy each of them twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol import messages
from moxserve.protocol.v2 import (
    InferAnswer,
    InferRequest,
    Parameter,
    RequestedOutput,
    checked_shape,
    datatype_of,
    dtype_by_datatype,
    from_raw,
    model_ref,
    refuse_extensions,
    shaped,
    to_raw,
)
from moxserve.protocol.wire import keep_large_buffers, tag
from moxserve.types import DType

__all__ = ["from_record", "infer_request", "infer_response", "message", "parse", "stream_error", "stream_response"]

# Below this many bytes protobuf's copies cost less than looking for the tensors does.
_LARGE_BYTES = 16_384
_RAW_INPUTS, _RAW_OUTPUTS, _STREAMED_RESPONSE = 7, 6, 2
_LENGTH_DELIMITED = 2
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def message(name: str, /, **fields: Any) -> Any:
    """Make a message of the protocol, such as `ServerLiveResponse`.

    Args:
        name: without the package.
        **fields: their values.
    """
    return messages.by_full_name(f"inference.{name}")(**fields)


def parse(name: str, data: bytes) -> Any:
    """Read a message of the protocol, such as `ModelReadyRequest`.

    Raises:
        InvalidArgument: the bytes are no such message.
    """
    try:
        return messages.by_full_name(f"inference.{name}").FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"the {len(data)} bytes of the request are no {name}: {error}") from None


def from_record(name: str, record: Mapping[str, Any]) -> bytes:
    """Write a message of the protocol, such as `ModelMetadataResponse`, that is given in its JSON form."""
    from google.protobuf import json_format

    data: bytes = json_format.ParseDict(record, message(name)).SerializeToString()
    return data


# Requests


def infer_request(data: bytes) -> InferRequest:
    """Read a ModelInferRequest.

    Raises:
        InvalidArgument: it is none, or its tensors do not fit what it says of them.
        Unimplemented: it asks for shared memory or a classification.
    """
    head, raw = _without_raw(data) if len(data) >= _LARGE_BYTES else (data, None)
    request = parse("ModelInferRequest", head)
    if raw is None:
        raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            f"the request has {len(request.inputs)} inputs, but {len(raw)} raw_input_contents; expected one for each"
        )
    inputs: dict[str, np.ndarray] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise InvalidArgument(f"input {tensor.name!r} is there twice")
        inputs[tensor.name] = _input(tensor, raw[i] if raw else None)
    parameters = _parameters(request.parameters)
    return InferRequest(
        model_ref(request.model_name, request.model_version),
        inputs,
        tuple(_requested(output) for output in request.outputs),
        parameters,
        request.id,
        binary=parameters.get("binary_data_output", True) is not False,
    )


def _requested(output: Any) -> RequestedOutput:
    if output.parameters:
        refuse_extensions(_parameters(output.parameters), f"output {output.name!r}")
    return RequestedOutput(output.name)


def _parameters(found: Any) -> dict[str, Parameter]:
    return {key: getattr(value, kind) for key, value in found.items() if (kind := value.WhichOneof("parameter_choice"))}


def _input(tensor: Any, raw: bytes | memoryview | None) -> np.ndarray:
    what = f"input {tensor.name!r}"
    if tensor.parameters:
        refuse_extensions(_parameters(tensor.parameters), what)
    dtype = dtype_by_datatype(tensor.datatype, what)
    shape = checked_shape(list(tensor.shape), what)
    if raw is None:
        return shaped(_typed(tensor, dtype, what), shape, what)
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise InvalidArgument(f"{what} has contents, but there are raw_input_contents too; expected one of them")
    return from_raw(raw, dtype, shape, what)


def _typed(tensor: Any, dtype: DType, what: str) -> np.ndarray:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidArgument(f"{what} is {tensor.datatype}, which has no typed contents; send raw_input_contents")
    others = [known.name for known, _ in tensor.contents.ListFields() if known.name != field]
    if others:
        raise InvalidArgument(f"{what} is {tensor.datatype}, but has {others[0]}; expected {field}")
    values = getattr(tensor.contents, field)
    if dtype.name == "string":
        flat = np.empty(len(values), dtype=object)
        flat[:] = list(values)
        return flat
    if dtype.numpy.itemsize >= 4 or dtype.name == "bool":
        return np.array(values, dtype.numpy)
    wide = np.array(values, np.int64)
    narrow = wide.astype(dtype.numpy)
    if not np.array_equal(narrow, wide):
        wrong = int(wide[narrow != wide][0])
        raise InvalidArgument(f"{what} has an element {wrong}, which {tensor.datatype} cannot hold")
    return narrow


def _without_raw(data: bytes) -> tuple[bytes, list[memoryview] | None]:
    """Split a request into what protobuf shall read and its raw tensors, which stay where they are.

    Returns:
        The message without `raw_input_contents`, and these; the whole message and None where its outermost level is not
        as expected. Then protobuf shall say what it is.
    """
    view = memoryview(data)
    head: list[memoryview] = []
    raw: list[memoryview] = []
    at, size = 0, len(data)
    while at < size:
        field = data[at]
        if field & 0x87 != _LENGTH_DELIMITED:
            return data, None
        length = shift = 0
        start = at + 1
        while True:
            if start >= size or shift > 28:
                return data, None
            byte = data[start]
            start += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        end = start + length
        if end > size:
            return data, None
        if field >> 3 == _RAW_INPUTS:
            raw.append(view[start:end])
        else:
            head.append(view[at:end])
        at = end
    return b"".join(head), raw


# Answers


def infer_response(answer: InferAnswer) -> bytes:
    """Write a ModelInferResponse.

    Raises:
        Unimplemented: an output is of a type that the protocol does not have, or that it has no typed contents for.
    """
    response = message(
        "ModelInferResponse", model_name=answer.model, model_version=str(answer.version), id=answer.request.id
    )
    if answer.request.parameters.get("triton_enable_empty_final_response"):
        # Every answer is the last one to its request; whoever asks is told.
        response.parameters["triton_final_response"].bool_param = True
    for name, array in answer.outputs.items():
        datatype = datatype_of(array, f"output {name!r}")
        output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if not answer.request.binary:
            _fill_contents(output, array)
    head = response.SerializeToString()
    return head if not answer.request.binary else b"".join([head, *_raw_parts(answer.outputs.values())])


def stream_response(response: bytes) -> bytes:
    """Write a ModelStreamInferResponse around a ModelInferResponse."""
    return b"".join([tag(_STREAMED_RESPONSE, len(response)), response])


def stream_error(request: bytes, reason: str) -> bytes:
    """Write a ModelStreamInferResponse that tells why a request failed, with the request's id if it can be read."""
    response = message("ModelStreamInferResponse", error_message=reason)
    with contextlib.suppress(InvalidArgument):
        response.infer_response.id = parse("ModelInferRequest", request).id
    return response.SerializeToString()


def _fill_contents(output: Any, array: np.ndarray) -> None:
    field = _CONTENTS.get(output.datatype)
    if field is None:
        raise Unimplemented(
            f"output {output.name!r} is {output.datatype}, which has no typed contents; leave binary_data_output out"
        )
    getattr(output.contents, field).extend(array.reshape(-1).tolist())


def _raw_parts(arrays: Iterable[np.ndarray]) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for array in arrays:
        data = to_raw(array)
        if len(data) > _LARGE_BYTES:
            keep_large_buffers()
        parts += [tag(_RAW_OUTPUTS, len(data)), data]
    return parts
