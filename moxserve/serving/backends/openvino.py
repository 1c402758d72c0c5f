"""OpenVINO models (IR, or ONNX read by OpenVINO) on the CPU.

Compiled for throughput: as many streams as there are CPUs, an inference request for each run under way. OpenVINO would
compute in bfloat16 by itself on CPUs that can; here it does so only for a variant that says so. Its CPU plugin holds
whole numbers of 64 bits in 32: values that do not fit are refused, not wrapped.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from moxserve.errors import Internal, InvalidArgument, MissingExtraError, Unimplemented
from moxserve.export.manifest import TensorNames
from moxserve.serving.cpus import cpus
from moxserve.types import TensorSpec, dtype_by_name

__all__ = ["SERVED_TYPES", "OpenVinoGraph", "import_openvino", "reason_of", "reports_withheld"]

_TYPES = {
    "f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8",
    "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64",
    "boolean": "bool",
}  # fmt: skip
SERVED_TYPES = frozenset(_TYPES.values())
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_INT32 = np.iinfo(np.int32)
_WIDE = (np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.uint32))
_RUNTIME_HINT = ["runtime_options", "INFERENCE_PRECISION_HINT"]
_lock = threading.Lock()


class OpenVinoGraph:
    """A model compiled by OpenVINO; see `Graph`.

    Args:
        path: `model.xml` with `model.bin` beside it, or an ONNX file.
        precision: of the arithmetic; `bfloat16` lets it compute in bfloat16, others are float32. Empty: what the file
            says in its runtime options, or float32.
        threads: for each run; 0 takes one.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ServingError: it cannot load the model.
    """

    platform = "openvino"
    resizable = False

    def __init__(self, path: str, precision: str = "", threads: int = 0) -> None:
        self._ov = import_openvino()
        available, each = cpus(), max(1, threads)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": max(1, available // each),
            "INFERENCE_NUM_THREADS": max(available, each),
            # Cores are shared with the event loop and other models; a pinned stream would wait for its core.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = _core().read_model(path)
            settings["INFERENCE_PRECISION_HINT"] = _hint(model, precision)
            self._model = _core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise Internal(f"{path}: OpenVINO cannot load it: {reason_of(error)}") from error
        self.inputs: Mapping[str, TensorSpec] = _specs(self._model.inputs)
        self.outputs: Mapping[str, TensorSpec] = _specs(self._model.outputs)
        self.names: Mapping[str, TensorNames] = {}
        self.synonyms: Mapping[str, str] = {
            n: _name(p) for p in (*self._model.inputs, *self._model.outputs) for n in p.get_names()
        }
        self._given_to, self._taken_from = _ports(self._model.inputs), _ports(self._model.outputs)
        self._free: list[Any] = []

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Compute some outputs; see `Graph.run`. OpenVINO computes all, whatever is asked for."""
        given = {self._given_to[name]: self._given(name, array) for name, array in feeds.items()}
        try:
            request = self._free.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            request.infer(given, share_inputs=True, share_outputs=True)
            return [_taken(request.get_tensor(self._taken_from[name])) for name in fetches]
        except RuntimeError as error:
            raise Internal(f"OpenVINO: {reason_of(error)}") from None
        finally:
            self._free.append(request)

    def _given(self, name: str, array: np.ndarray) -> Any:
        if array.dtype in _WIDE and array.size and not (_INT32.min <= array.min() and array.max() <= _INT32.max):
            raise InvalidArgument(
                f"input {name!r} has values from {array.min()} to {array.max()}; OpenVINO computes with whole numbers "
                "of 32 bits"
            )
        array = np.ascontiguousarray(array) if array.ndim else array
        if array.dtype == _BFLOAT16:
            return self._ov.Tensor(array.view(np.uint16), list(array.shape), self._ov.Type.bf16)
        return array

    def close(self) -> None:
        """Free the model."""
        self._free.clear()
        del self._model
        self._given_to, self._taken_from = {}, {}


@cache
def _make_core() -> Any:
    return import_openvino().Core()


def _core() -> Any:
    # One for the process: it holds the plugins.
    with _lock:
        return _make_core()


@contextmanager
def reports_withheld() -> Iterator[None]:
    """Let packages of OpenVINO be imported that would report their use to its makers, where they find how to."""
    reporter = "openvino_telemetry"
    before = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment] # as if it were not installed
    try:
        yield
    finally:
        sys.modules.pop(reporter, None)
        if before is not None:
            sys.modules[reporter] = before


def import_openvino(what: str = "serving an OpenVINO model") -> Any:
    """Import OpenVINO, which reports the import itself if it can: it cannot here.

    Args:
        what: for the error, who needs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if sys.modules.get("openvino") is not None:
        return sys.modules["openvino"]
    try:
        with reports_withheld():
            import openvino as ov
    except ImportError as error:
        if error.name != "openvino":
            raise
        raise MissingExtraError("openvino", "openvino", what) from None
    return ov


def _hint(model: Any, precision: str) -> str:
    """Return OpenVINO's hint: what the manifest says, else what the model's own runtime options say, else float32."""
    if precision:
        return "bf16" if precision == "bfloat16" else "f32"
    if model.has_rt_info(_RUNTIME_HINT):
        return str(model.get_rt_info(_RUNTIME_HINT).value)
    return "f32"


def _name(port: Any) -> str:
    # A tensor may have several names, in no order; those who convert models put in what the signature said.
    return min(port.get_names(), key=lambda n: (len(n), n), default=port.get_node().get_friendly_name())


def _ports(ports: Sequence[Any]) -> dict[str, Any]:
    return {_name(port): port for port in ports}


def _specs(ports: Sequence[Any]) -> dict[str, TensorSpec]:
    return {_name(port): _spec(port) for port in ports}


def _spec(port: Any) -> TensorSpec:
    name, kind, dims = _name(port), port.get_element_type().get_type_name(), port.get_partial_shape()
    if kind not in _TYPES:
        raise Unimplemented(f"OpenVINO's {name!r} is of type {kind}, which is not served with OpenVINO")
    shape = None if dims.rank.is_dynamic else tuple(None if d.is_dynamic else d.get_length() for d in dims)
    return TensorSpec(name, dtype_by_name(_TYPES[kind]), shape, name)


def _taken(tensor: Any) -> np.ndarray:
    """Copy an output: its memory is used again by the next run."""
    data = tensor.data.copy()
    return data.view(_BFLOAT16) if tensor.get_element_type().get_type_name() == "bf16" else data


def reason_of(error: Exception) -> str:
    """Return what OpenVINO says without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(kept) or str(error)
