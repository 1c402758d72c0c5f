"""ONNX models, run by ONNX Runtime on the CPU.

One session, in which every run uses the thread of its caller (`intra_op_threads` of 0 or 1): as many requests as there
are CPUs run side by side and none waits for another's threads, which is the cheapest way to serve single requests.
Threads inside a run never spin while they wait. Strings of ONNX are text: bytes that are no UTF-8 are refused.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from moxserve.errors import (
    Internal,
    InvalidArgument,
    MissingExtraError,
    ResourceExhausted,
    ServingError,
    Unimplemented,
    UnknownError,
)
from moxserve.export.manifest import TensorNames
from moxserve.types import DType, TensorSpec, dtype_by_name

__all__ = ["OnnxGraph"]

_TYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "int8": "int8",
    "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32", "int64": "int64",
    "uint64": "uint64", "bool": "bool", "string": "string",
}  # fmt: skip
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BFLOAT16_ELEMENT = 16  # in ONNX's TensorProto.DataType
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", re.ASCII)
_STATUSES: Mapping[str, type[ServingError]] = {
    "INVALID_ARGUMENT": InvalidArgument, "NOT_IMPLEMENTED": Unimplemented, "NO_SUCHFILE": UnknownError,
}  # fmt: skip


class OnnxGraph:
    """An ONNX model in a session of its own; see `Graph`.

    Args:
        path: the `.onnx` file; external data lies beside it.
        intra_op_threads: threads inside one operation; 0 and 1 use the caller's only.
        inter_op_threads: operations at once; 0 and 1 for one after the other.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ServingError: it cannot load the model.
    """

    platform = "onnx"
    resizable = False

    def __init__(self, path: str, intra_op_threads: int = 0, inter_op_threads: int = 0) -> None:
        ort = _import_onnxruntime()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, intra_op_threads)
        settings.inter_op_num_threads = max(1, inter_op_threads)
        if inter_op_threads > 1:
            settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        for pool in ("intra", "inter"):
            settings.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
        settings.log_severity_level = 3
        self._ort = ort
        try:
            self._session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _translated(error, f"{path}: ") from error
        self.inputs: Mapping[str, TensorSpec] = {a.name: _spec(a) for a in self._session.get_inputs()}
        self.outputs: Mapping[str, TensorSpec] = {a.name: _spec(a) for a in self._session.get_outputs()}
        self.names: Mapping[str, TensorNames] = {}
        self.synonyms: Mapping[str, str] = {}
        self._strings = [name for name, spec in self.inputs.items() if spec.dtype.name == "string"]
        self._text = {name for name, spec in self.outputs.items() if spec.dtype.name == "string"}
        specs = (*self.inputs.values(), *self.outputs.values())
        self._by_value = any(spec.dtype.name == "bfloat16" for spec in specs)

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Compute some outputs; see `Graph.run`."""
        if self._strings:
            feeds = {**feeds, **{name: _decoded(feeds[name], name) for name in self._strings}}
        try:
            values = self._run_values(feeds, fetches) if self._by_value else self._session.run(list(fetches), feeds)
        except Exception as error:  # noqa: BLE001 - as above
            raise _translated(error) from None
        if not self._text:
            return list(values)
        return [_encoded(v) if name in self._text else v for name, v in zip(fetches, values, strict=True)]

    def _run_values(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Run with ONNX Runtime's own values: it does not know NumPy's bfloat16."""
        make = self._ort.OrtValue
        given, kept = {}, []
        for name, array in feeds.items():
            if array.dtype == _BFLOAT16:
                bits = np.ascontiguousarray(array).view(np.uint16)
                kept.append(bits)  # the value only points to them
                given[name] = make.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16_ELEMENT)
            else:
                given[name] = make.ortvalue_from_numpy(array)
        return [_as_numpy(value) for value in self._session.run_with_ort_values(list(fetches), given)]

    def close(self) -> None:
        """Free the session."""
        del self._session


def _as_numpy(value: Any) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape, dtype=np.int64)))
    return np.frombuffer(bytearray(raw), _BFLOAT16).reshape(shape)


def _import_onnxruntime() -> Any:
    # Unless the user wants it, what is served here is nobody else's business. It is read when the library is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingExtraError("onnxruntime", "onnx", "serving an ONNX model") from None
    return ort


def _spec(argument: Any) -> TensorSpec:
    # ONNX Runtime tells of an unknown rank and of a scalar in the same way, as no dimensions.
    shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in argument.shape or ()) or None
    return TensorSpec(argument.name, _dtype(argument), shape, argument.name)


def _dtype(argument: Any) -> DType:
    kind = argument.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        raise Unimplemented(f"{argument.name!r} is a {argument.type}, which cannot travel in a request")
    return dtype_by_name(_TYPES[kind])


def _decoded(array: np.ndarray, name: str) -> np.ndarray:
    text = np.empty(array.size, object)
    for i, item in enumerate(array.reshape(-1)):
        try:
            text[i] = item.decode() if isinstance(item, bytes) else str(item)
        except UnicodeDecodeError:
            raise InvalidArgument(f"input {name!r}: element {i} is no UTF-8; strings of ONNX are text") from None
    return text.reshape(array.shape)


def _encoded(array: np.ndarray) -> np.ndarray:
    data = np.empty(array.size, object)
    data[:] = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1)]
    return data.reshape(array.shape)


def _translated(error: Exception, where: str = "") -> ServingError:
    """Return an error of ONNX Runtime with the status that it names itself."""
    if isinstance(error, ServingError):
        return error
    text = str(error)
    code = _CODE.match(text)
    if code:
        kind = _STATUSES.get(code[1], Internal)
        return kind(where + text[code.end() :].strip())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return ResourceExhausted(f"{where}not enough memory for this request: {text}")
    return Internal(f"{where}ONNX Runtime: {type(error).__name__}: {text}")
