"""Calls as REST bodies of TensorFlow Serving, and answers back. No sockets; shared by sync and async.

Column format (`inputs` / `outputs`) is the default: it takes inputs of unequal first dimension, scalars included. Row
format (`instances` / `predictions`) is for servers that know nothing else; every input then needs the same number of
rows.

JSON has no dtypes: those of the answer come from the signature. Strings travel as `{"b64": ...}`, so any bytes survive;
in answers only outputs whose alias ends in `_bytes` do, others are UTF-8 text. NaN and infinities are written bare, as
the server reads and writes them, though JSON has none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from moxserve.client.calls import (
    Array,
    ListedModel,
    ListReply,
    ModelMetadata,
    PredictCall,
    PredictReply,
    StatusReply,
    VersionStatus,
)
from moxserve.errors import ClientError, InvalidArgument, UsageError
from moxserve.protocol.tensors import to_array
from moxserve.types import DTYPES, ModelRef, Signature, TensorSpec, dtype_of

__all__ = [
    "decode_json",
    "decode_list",
    "decode_metadata",
    "decode_predict",
    "decode_status",
    "encode_predict",
    "model_path",
]

_CARRIED = frozenset(
    ("float32", "float64", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "bool", "string")
)
_BY_ENUM_NAME = {dtype.enum_name: dtype for dtype in DTYPES}


def model_path(model: ModelRef) -> str:
    """Return the path of a model's resource, such as `/v1/models/digits/versions/3`."""
    path = f"/v1/models/{quote(model.name, safe='')}"
    if model.version is not None:
        return f"{path}/versions/{model.version}"
    return f"{path}/labels/{quote(model.label, safe='')}" if model.label else path


def encode_predict(call: PredictCall, *, rows: bool = False) -> bytes:
    """Write the body of a predict request.

    Args:
        call: what to ask.
        rows: row format instead of column format.

    Raises:
        UsageError: an input's dtype cannot travel as JSON; or, for rows, the inputs have no common number of rows.
    """
    for alias, array in call.inputs.items():
        name = _dtype_name(alias, array)
        if name not in _CARRIED:
            raise UsageError(f"input {alias!r} is {name}, which REST cannot carry", hint="use grpc:// for this model")
    values = {alias: _plain(array) for alias, array in call.inputs.items()}
    body: dict[str, Any] = {"signature_name": call.signature_name}
    if rows:
        body["instances"] = _rows(call.inputs, values)
    else:
        body["inputs"] = values
    finite = all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in call.inputs.values())
    return _dumps(body) if finite else json.dumps(body, default=_listed).encode()


def _dtype_name(alias: str, array: Array) -> str:
    try:
        return dtype_of(array).name
    except InvalidArgument as error:
        raise UsageError(f"input {alias!r}: {error.message}") from None


def _plain(array: Array) -> Any:
    """Return what the JSON writer takes: the array itself where it can be written in one go."""
    if array.dtype.kind in "OSU":
        return _encoded_strings(to_array(array))
    if array.ndim == 0 or array.size == 0:
        return array.tolist()
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _encoded_strings(array: Array) -> Any:
    flat = np.empty(array.size, object)
    flat[:] = [{"b64": base64.b64encode(item).decode()} for item in array.reshape(-1)]
    return flat.reshape(array.shape).tolist()


def _rows(inputs: Mapping[str, Array], values: Mapping[str, Any]) -> list[Any]:
    counts = {alias: array.shape[0] if array.ndim else None for alias, array in inputs.items()}
    if len(set(counts.values())) != 1 or None in counts.values():
        raise UsageError(
            f"row format needs inputs with the same number of rows; got {counts}", hint="use column format"
        )
    if len(values) == 1:
        return list(next(iter(values.values())))
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _dumps(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _listed(value: Any) -> Any:
    return value.tolist()


def decode_json(data: bytes) -> Any:
    """Read a JSON answer; bare NaN and Infinity, and bytes that are no UTF-8, included.

    Raises:
        ClientError: it is no JSON.
    """
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # NaN, Infinity or raw bytes: the slower reader takes them.
    try:
        return json.loads(data.decode(errors="surrogateescape"))
    except ValueError as error:
        raise ClientError(f"expected a JSON answer, got {data[:80]!r} ({error})") from None


def decode_predict(call: PredictCall, answer: Any) -> PredictReply:
    """Read a predict answer of either format.

    Raises:
        ClientError: the answer has another form than its format says.
    """
    if not isinstance(answer, Mapping) or not ("outputs" in answer or "predictions" in answer):
        raise ClientError(f"expected an answer with 'outputs' or 'predictions', got {str(answer)[:80]}")
    if "outputs" in answer:
        columns = _columns(answer["outputs"], call.signature)
    else:
        columns = _from_rows(answer["predictions"], call.signature)
    wanted = call.outputs or list(columns)
    missing = [alias for alias in wanted if alias not in columns]
    if missing:
        raise ClientError(f"the answer lacks output {missing[0]!r}; it has {', '.join(columns)}")
    specs = call.signature.outputs if call.signature else {}
    return PredictReply({alias: _tensor(columns[alias], specs.get(alias)) for alias in wanted})


def _only_output(signature: Signature | None) -> str:
    return next(iter(signature.outputs)) if signature and len(signature.outputs) == 1 else "output"


def _columns(outputs: Any, signature: Signature | None) -> Mapping[str, Any]:
    several = signature is None or len(signature.outputs) != 1
    if several and isinstance(outputs, Mapping) and not _is_b64(outputs):
        return outputs
    return {_only_output(signature): outputs}


def _from_rows(rows: Sequence[Any], signature: Signature | None) -> Mapping[str, Any]:
    if rows and isinstance(rows[0], Mapping) and not _is_b64(rows[0]):
        return {alias: [row[alias] for row in rows] for alias in rows[0]}
    return {_only_output(signature): rows}


def _is_b64(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and isinstance(value.get("b64"), str)


def _tensor(value: Any, spec: TensorSpec | None) -> Array:
    try:
        if spec is None:
            return _strings(value) if _leads_to_text(value) else to_array(value)
        array = _strings(value) if spec.dtype.name == "string" else np.asarray(value, dtype=spec.dtype.numpy)
    except (ValueError, TypeError, InvalidArgument) as error:
        raise ClientError(f"the answer does not fit its output {spec or 'of unknown dtype'}: {error}") from None
    return _restore_empty(array, spec)


def _restore_empty(array: Array, spec: TensorSpec) -> Array:
    """Give an empty array its known dimensions back: `[]` alone says nothing about those after the first."""
    if array.size or spec.shape is None or array.ndim == len(spec.shape):
        return array
    return array.reshape([*array.shape, *(d or 0 for d in spec.shape[array.ndim :])])


def _leads_to_text(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, str) or _is_b64(value)


def _strings(value: Any) -> Array:
    shape = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    flat: list[bytes] = []
    _collect(value, flat)
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)


def _collect(value: Any, flat: list[bytes]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, flat)
    elif isinstance(value, str):
        flat.append(value.encode(errors="surrogateescape"))
    elif _is_b64(value):
        flat.append(base64.b64decode(value["b64"]))
    else:
        raise InvalidArgument(f"expected text, got {value!r:.40}")


def decode_metadata(answer: Any, model: ModelRef) -> ModelMetadata:
    """Read a metadata answer.

    Raises:
        ClientError: it has another form.
    """
    try:
        spec = answer["model_spec"]
        found = answer["metadata"]["signature_def"]["signature_def"]
        signatures = {}
        for name in sorted(found):
            inputs, outputs = _specs(found[name].get("inputs", {})), _specs(found[name].get("outputs", {}))
            if inputs is not None and outputs is not None:
                signatures[name] = Signature(name, found[name].get("method_name", ""), inputs, outputs)
        version = spec.get("version")
        return ModelMetadata(spec.get("name") or model.name, None if version is None else int(version), signatures)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClientError(
            f"the metadata of {str(model)!r} has an unknown form ({error!r}): {str(answer)[:80]}"
        ) from None


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec] | None:
    """Read tensor infos; None when one is of a type that no tensor carries, such as an initialiser's."""
    specs = {}
    for alias in sorted(infos):
        info = infos[alias]
        dtype = _BY_ENUM_NAME.get(str(info["dtype"]).removesuffix("_REF"))
        if dtype is None:
            return None
        shape = info.get("tensor_shape", {})
        sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
        dims = None if shape.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes)
        specs[alias] = TensorSpec(alias, dtype, dims, info.get("name", ""))
    return specs


def decode_status(answer: Any) -> StatusReply:
    """Read a status answer.

    Raises:
        ClientError: it has another form.
    """
    try:
        return StatusReply([_version_status(entry) for entry in answer["model_version_status"]])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClientError(f"a status of unknown form ({error!r}): {str(answer)[:80]}") from None


def decode_list(answer: Any) -> ListReply:
    """Read a list of models, in the form of `moxserve.protocol.status`.

    Raises:
        ClientError: it has another form.
    """
    try:
        return ListReply([_listed_model(model) for model in answer["models"]])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClientError(f"a list of models of unknown form ({error!r}): {str(answer)[:80]}") from None


def _listed_model(model: Mapping[str, Any]) -> ListedModel:
    labels = {label: int(version) for label, version in model["labels"].items()}
    return ListedModel(model["name"], labels, [_version_status(entry) for entry in model["versions"]])


def _version_status(entry: Mapping[str, Any]) -> VersionStatus:
    status = entry.get("status", {})
    return VersionStatus(
        int(entry["version"]), entry["state"], status.get("error_code", "OK"), status.get("error_message", "")
    )
