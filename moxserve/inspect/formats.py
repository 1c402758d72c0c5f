"""Models of other runtimes: what they take and give, their operations and weights, read from the file alone.

ONNX needs the `onnx` package, TFLite `flatbuffers`; OpenVINO's intermediate representation is XML, whose layers name
their type, and whose constants name their bytes in the `.bin` file beside it.

Fields of TensorFlow Lite's flatbuffer, by their place in its schema:

    Model         0 version, 1 operator_codes, 2 subgraphs, 3 description, 4 buffers
    OperatorCode  0 deprecated_builtin_code (int8), 1 custom_code, 3 builtin_code (int32)
    SubGraph      0 tensors, 1 inputs, 2 outputs, 3 operators
    Tensor        0 shape, 1 type (int8), 2 buffer, 3 name, 7 shape_signature
    Operator      0 opcode_index (uint32)
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from moxserve import file
from moxserve.errors import DataError, MissingExtraError, MoxserveError
from moxserve.inspect.report import Report, Table, columns

__all__ = ["ModelFacts", "TensorFact", "describe_model", "read_model"]


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One input or output: name, dtype as TensorFlow calls it, shape with None for a dimension that varies."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass
class ModelFacts:
    """What is in a model file.

    Attributes:
        inputs: in order.
        outputs: in order.
        ops: how often each operation occurs.
        unknown: operations that the runtime does not know by itself.
        weights: how many constant tensors.
        weight_bytes: that they take.
        producer: program and version that wrote it; empty when the file does not say.
        versions: of the format, by name.
    """

    inputs: list[TensorFact] = field(default_factory=list)
    outputs: list[TensorFact] = field(default_factory=list)
    ops: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    weights: int = 0
    weight_bytes: int = 0
    producer: str = ""
    versions: dict[str, Any] = field(default_factory=dict)


def read_model(path: str, kind: str) -> ModelFacts:
    """Read a model of another runtime.

    Args:
        path: of the file.
        kind: `onnx`, `tflite` or `openvino`.

    Raises:
        DataError: it is none, or damaged.
        MissingExtraError: what reads it is not installed.
    """
    return {"onnx": _read_onnx, "tflite": _read_tflite, "openvino": _read_openvino}[kind](path)


def describe_model(report: Report, path: str, kind: str) -> None:
    """Put what is in a model of another runtime into a report; see `read_model`."""
    facts = read_model(path, kind)
    report.facts.setdefault("size_bytes", file.get_size(path) + _beside(path))
    if facts.producer:
        report.facts["producer"] = facts.producer
    report.facts |= {key.replace(" ", "_"): value for key, value in facts.versions.items()}
    report.facts |= {"weights": facts.weights, "weights_bytes": facts.weight_bytes, "nodes": sum(facts.ops.values())}
    sides = (("input", facts.inputs), ("output", facts.outputs))
    rows: list[tuple[Any, ...]] = [(side, f.name, f.dtype, f.shape) for side, fs in sides for f in fs]
    report.tables.append(Table("tensors", columns("side name:long dtype shape:shape"), rows, "inputs and outputs"))
    counts: list[tuple[Any, ...]] = sorted(facts.ops.items(), key=lambda item: (-item[1], item[0]))
    report.tables.append(Table("operations", columns("operation nodes:count"), counts))
    if facts.unknown:
        report.facts["unknown_operations"] = facts.unknown
        report.notes.append(f"not built into the runtime: {', '.join(facts.unknown)}")


def _beside(path: str) -> int:
    """Return the size of the weights that lie beside a model file."""
    weights = path.removesuffix(".xml") + ".bin" if path.endswith(".xml") else f"{path}.data"
    return file.get_size(weights) if os.path.isfile(weights) else 0


# ONNX


def _read_onnx(path: str) -> ModelFacts:
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "onnx", "reading an ONNX model") from None
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        return _onnx_facts(onnx, model, path)
    except (DecodeError, TypeError, ValueError) as error:
        # Text that is not UTF-8 comes out of ONNX's messages as bytes, and an unknown element type has no name.
        raise DataError(f"{path} is no ONNX model, or damaged: {error}") from None


def _onnx_facts(onnx: Any, model: Any, path: str) -> ModelFacts:
    graph = model.graph
    if not graph.node and not graph.input:
        raise DataError(f"{path} is no ONNX model: it has no graph")
    weights = {tensor.name for tensor in graph.initializer}
    facts = ModelFacts(
        inputs=[_onnx_tensor(onnx, value) for value in graph.input if value.name not in weights],
        outputs=[_onnx_tensor(onnx, value) for value in graph.output],
        weights=len(weights),
        weight_bytes=sum(tensor.ByteSize() for tensor in graph.initializer),
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        versions={"ir_version": model.ir_version}
        | {f"opset {o.domain or 'ai.onnx'}": o.version for o in model.opset_import},
    )
    _count_onnx(onnx, graph, facts, {(f.domain, f.name) for f in model.functions})
    facts.unknown = sorted(set(facts.unknown))
    return facts


def _onnx_tensor(onnx: Any, value: Any) -> TensorFact:
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else ""
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    if not tensor.HasField("shape"):
        return TensorFact(value.name, dtype, None)
    return TensorFact(
        value.name, dtype, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    )


def _count_onnx(onnx: Any, graph: Any, facts: ModelFacts, own: set[tuple[str, str]]) -> None:
    """Count the operations of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        name = f"{domain}.{node.op_type}" if domain else node.op_type
        facts.ops[name] += 1
        # Microsoft's own domain comes with ONNX Runtime.
        known = onnx.defs.has(node.op_type, domain) or domain.startswith("com.microsoft")
        if not known and (node.domain, node.op_type) not in own:
            facts.unknown.append(name)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _count_onnx(onnx, inner, facts, own)


# TensorFlow Lite

_TFLITE_TYPES = (
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64",
    "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16",
)  # fmt: skip
_CUSTOM = 32


def _read_tflite(path: str) -> ModelFacts:
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise MissingExtraError("flatbuffers", "tflite", "reading a TFLite model") from None
    from moxserve.serving.backends.tflite_file import read_tflite

    data = file.read(path, binary=True)
    try:
        return _Tflite(data).facts(read_tflite(data).custom_ops)
    except MoxserveError as error:
        raise DataError(f"{path} is no TFLite model, or damaged: {error.message}") from None
    except (struct.error, IndexError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is no TFLite model, or damaged: {error}") from None


class _Tflite:
    """The tables of a TFLite file; any of its reads may fail on a damaged one."""

    def __init__(self, data: bytes) -> None:
        from moxserve.serving.backends import tflite_file

        self._in = tflite_file
        self._root = tflite_file._root(data)
        self._subgraphs = list(tflite_file._tables(self._root, 2))
        self._tensors = list(tflite_file._tables(self._subgraphs[0], 0))

    def facts(self, custom: Sequence[str]) -> ModelFacts:
        buffers = [len(self._in._bytes(buffer, 0)) for buffer in self._in._tables(self._root, 4)]
        codes = [self._code(code) for code in self._in._tables(self._root, 1)]
        held = [t for g in self._subgraphs for t in self._in._tables(g, 0) if buffers[self._in._uint32(t, 2)]]
        return ModelFacts(
            inputs=[self._fact(i) for i in self._numbers(self._subgraphs[0], 1)],
            outputs=[self._fact(i) for i in self._numbers(self._subgraphs[0], 2)],
            ops=Counter(codes[self._in._uint32(o, 0)] for g in self._subgraphs for o in self._in._tables(g, 3)),
            unknown=sorted(custom),
            weights=len(held),
            weight_bytes=sum(buffers[self._in._uint32(t, 2)] for t in held),
            producer=self._in._text(self._root, 3),
            versions={"schema": self._in._uint32(self._root, 0), "subgraphs": len(self._subgraphs)},
        )

    def _code(self, code: Any) -> str:
        number = max(self._int8(code, 0), self._in._uint32(code, 3))
        if number == _CUSTOM:
            return self._in._text(code, 1) or "CUSTOM"
        return _builtin_names().get(number, f"BUILTIN_{number}")

    def _fact(self, index: int) -> TensorFact:
        tensor = self._tensors[index]
        shape = self._numbers(tensor, 7) or self._numbers(tensor, 0)
        number = self._int8(tensor, 1)
        dtype = _TFLITE_TYPES[number] if number < len(_TFLITE_TYPES) else str(number)
        return TensorFact(self._in._text(tensor, 3), dtype, tuple(None if d < 0 else d for d in shape))

    def _numbers(self, table: Any, number: int) -> list[int]:
        offset = self._in._field(table, number)
        if not offset:
            return []
        start, count = table.Vector(offset), table.VectorLen(offset)
        return list(struct.unpack_from(f"<{count}i", table.Bytes, start))

    def _int8(self, table: Any, number: int) -> int:
        offset = self._in._field(table, number)
        return table.Bytes[offset + table.Pos] if offset else 0


def _builtin_names() -> dict[int, str]:
    """Return the names of the built-in operations, of whichever package with the schema is installed."""
    for module in ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated"):
        try:
            schema = __import__(module, fromlist=["BuiltinOperator"])
        except ImportError:
            continue
        return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    return {}


# OpenVINO


def _read_openvino(path: str) -> ModelFacts:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is no OpenVINO model, or damaged: {error}") from None
    if root.tag != "net" or root.find("layers") is None:
        raise DataError(f"{path} is no OpenVINO model: its root is <{root.tag}>; expected <net> with <layers>")
    facts = ModelFacts(versions={"ir_version": _number(root.get("version"))})
    for layer in root.iterfind(".//layers/layer"):
        _count_layer(layer, facts)
    for entry in root.iterfind("./rt_info/Runtime_version"):
        facts.producer = f"OpenVINO {entry.get('value', '')}"
    binary = path.removesuffix(".xml") + ".bin"
    if facts.weights and not os.path.isfile(binary):
        raise DataError(f"{path}: its weights are missing: {os.path.basename(binary)} is not beside it")
    return facts


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _count_layer(layer: Any, facts: ModelFacts) -> None:
    kind, version = layer.get("type", ""), layer.get("version", "")
    if kind == "Const":
        facts.weights += 1
        data = layer.find("data")
        facts.weight_bytes += _number(data.get("size") if data is not None else None) or 0
    elif kind == "Parameter":
        facts.inputs.append(_layer_tensor(layer, "output"))
    elif kind == "Result":
        facts.outputs.append(_layer_tensor(layer, "input"))
    else:
        facts.ops[kind] += 1
        if version and not version.startswith("opset") and version != "ie_internal_opset":
            facts.unknown.append(kind)


def _openvino_dtype(precision: str) -> str:
    """Return TensorFlow's name of `FP32`, `I64`, `BOOL`."""
    match = re.fullmatch(r"(FP|BF|I|U)(\d+)", precision)
    words = {"FP": "float", "BF": "bfloat", "I": "int", "U": "uint"}
    return words[match.group(1)] + match.group(2) if match else precision.lower()


def _layer_tensor(layer: Any, side: str) -> TensorFact:
    port = layer.find(f"./{side}/port")
    if port is None:
        return TensorFact(layer.get("name", ""), "", None)
    dims = [_number(dim.text) for dim in port.iterfind("dim")]
    name = (port.get("names") or layer.get("output_names") or layer.get("name", "")).split(",")[0]
    return TensorFact(name, _openvino_dtype(port.get("precision", "")), tuple(dims))
