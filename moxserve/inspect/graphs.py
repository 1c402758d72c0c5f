"""What is in a graph: operations by type, devices, constants, variables, tables, assets, signatures. No TensorFlow."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError

from moxserve.errors import DataError, InvalidArgument
from moxserve.protocol import messages
from moxserve.types import INIT_SIGNATURE, dtype_by_enum, node_name

__all__ = [
    "GraphFacts",
    "TensorRow",
    "VariableRow",
    "ancestors",
    "asset_files",
    "dtype_name",
    "known_operations",
    "look_at",
    "loose_ends",
    "nodes_of",
    "shape_of",
    "signature_rows",
    "tables_in",
    "variables_in",
]

_REF_OFFSET = 100
_VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
_TABLES = ("HashTable", "MutableHashTable", "MutableDenseHashTable", "AnonymousHashTable", "AnonymousMutableHashTable")


@cache
def known_operations() -> frozenset[str]:
    """Return the names of TensorFlow 2.21's own operations."""
    with open(os.path.join(os.path.dirname(__file__), "known_ops.txt"), encoding="ascii") as f:
        return frozenset(f.read().split())


def dtype_name(enum: int) -> str:
    """Return the name of a DataType number, such as `float32`; `resource` and the like for those no request carries."""
    enum = enum - _REF_OFFSET if enum > _REF_OFFSET else enum
    try:
        return dtype_by_enum(enum).name
    except InvalidArgument:
        return messages.enum_name("tensorflow.DataType", enum).removeprefix("DT_").lower()


def shape_of(shape: Any) -> tuple[int | None, ...] | None:
    """Read a TensorShapeProto; None when the rank is unknown."""
    return None if shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)


def nodes_of(graph_def: Any) -> Iterator[tuple[str, Any]]:
    """Yield every node with the name of the function that it is in; empty for the graph itself."""
    for node in graph_def.node:
        yield "", node
    for function in graph_def.library.function:
        for node in function.node_def:
            yield function.signature.name, node


@dataclass
class GraphFacts:
    """What is in a graph.

    Attributes:
        nodes: of the graph itself.
        functions: in its library.
        function_nodes: in these.
        ops: how often each operation is in the graph itself.
        function_ops: the same, in its functions.
        devices: how many nodes name each device; nodes without one are not counted.
        constants: how many.
        constant_bytes: that they take in the file.
        unknown: operations that are neither TensorFlow's nor functions of the graph.
        producer: version of the GraphDef's producer.
        min_consumer: oldest consumer that may read it.
    """

    nodes: int = 0
    functions: int = 0
    function_nodes: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    function_ops: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    constants: int = 0
    constant_bytes: int = 0
    unknown: list[str] = field(default_factory=list)
    producer: int = 0
    min_consumer: int = 0


def look_at(graph_def: Any) -> GraphFacts:
    """Count what is in a GraphDef."""
    facts = GraphFacts(
        nodes=len(graph_def.node),
        functions=len(graph_def.library.function),
        producer=graph_def.versions.producer,
        min_consumer=graph_def.versions.min_consumer,
    )
    for function, node in nodes_of(graph_def):
        (facts.function_ops if function else facts.ops)[node.op] += 1
        facts.function_nodes += bool(function)
        if node.device:
            facts.devices[node.device] += 1
        if node.op == "Const":
            facts.constants += 1
            facts.constant_bytes += node.attr["value"].tensor.ByteSize()
    own = {function.signature.name for function in graph_def.library.function}
    facts.unknown = sorted((facts.ops.keys() | facts.function_ops.keys()) - known_operations() - own)
    return facts


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One input or output of a signature, whatever its kind.

    Attributes:
        signature: key.
        method: of the signature.
        side: `input` or `output`.
        alias: name for callers.
        dtype: TensorFlow's name.
        shape: None in the place of a dimension that varies; None as a whole when the rank does.
        tensor: in the graph; of a sparse tensor those of values, indices and shape.
    """

    signature: str
    method: str
    side: str
    alias: str
    dtype: str
    shape: tuple[int | None, ...] | None
    tensor: str


def signature_rows(definitions: Mapping[str, Any]) -> list[TensorRow]:
    """List the tensors of SignatureDefs, by key, inputs first; the init op of TensorFlow 2 is none."""
    rows = []
    for key, definition in sorted(definitions.items()):
        if key == INIT_SIGNATURE:
            continue
        method = definition.method_name
        for side, infos in (("input", definition.inputs), ("output", definition.outputs)):
            for alias, info in sorted(infos.items()):
                shape = shape_of(info.tensor_shape)
                rows.append(TensorRow(key, method, side, alias, dtype_name(info.dtype), shape, _tensor_of(info)))
    return rows


def _tensor_of(info: Any) -> str:
    encoding = info.WhichOneof("encoding")
    if encoding == "coo_sparse":
        sparse = info.coo_sparse
        return f"sparse({sparse.values_tensor_name}, {sparse.indices_tensor_name}, {sparse.dense_shape_tensor_name})"
    if encoding == "composite_tensor":
        return "composite(" + ", ".join(c.name for c in info.composite_tensor.components) + ")"
    name: str = info.name
    return name


def loose_ends(graph_def: Any) -> tuple[list[TensorRow], list[TensorRow]]:
    """Return what a graph without signatures takes and gives: its placeholders, and the nodes that nothing reads."""
    read = {node_name(name) for node in graph_def.node for name in node.input}
    inputs, outputs = [], []
    for node in graph_def.node:
        if node.op in ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault"):
            shape = shape_of(node.attr["shape"].shape) if "shape" in node.attr else None
            dtype = dtype_name(node.attr["dtype"].type)
            inputs.append(TensorRow("", "", "input", node.name, dtype, shape, f"{node.name}:0"))
        elif node.name not in read and node.op not in ("Const", "NoOp", "Assert", *_VARIABLES):
            dtype = dtype_name(node.attr["T"].type) if "T" in node.attr else ""
            outputs.append(TensorRow("", "", "output", node.name, dtype, None, f"{node.name}:0"))
    return inputs, outputs


@dataclass(frozen=True, slots=True)
class VariableRow:
    """A variable as the graph declares it.

    Attributes:
        name: under which it is shared and saved.
        dtype: TensorFlow's name.
        shape: None in the place of an unknown dimension.
        parameters: how many elements; 0 when the shape is not known.
        size_bytes: of them; 0 when that is not known, or for strings.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    parameters: int
    size_bytes: int


def variables_in(graph_def: Any) -> list[VariableRow]:
    """List the variables that a graph declares, by name, each once."""
    found: dict[str, VariableRow] = {}
    for _, node in nodes_of(graph_def):
        if node.op not in _VARIABLES:
            continue
        name = node.attr["shared_name"].s.decode(errors="replace") or node.name
        shape = shape_of(node.attr["shape"].shape)
        enum = node.attr["dtype"].type
        count = math.prod(d or 0 for d in shape) if shape is not None else 0
        found.setdefault(name, VariableRow(name, dtype_name(enum), shape, count, count * _item_bytes(enum)))
    return sorted(found.values(), key=lambda row: row.name)


def _item_bytes(enum: int) -> int:
    try:
        dtype = dtype_by_enum(enum - _REF_OFFSET if enum > _REF_OFFSET else enum)
    except InvalidArgument:
        return 0
    return 0 if dtype.name == "string" else dtype.numpy.itemsize


def tables_in(graph_def: Any) -> list[tuple[str, str, str, str, str]]:
    """List the lookup tables: name, operation, dtype of the keys, of the values, and the asset that they are filled of.

    The last is empty where a table is filled of constants, or while it runs.
    """
    nodes = {node.name: node for node in graph_def.node}
    filled = {
        node_name(node.input[0]): _constant_text(nodes.get(node_name(node.input[1])))
        for node in graph_def.node
        if node.op.startswith("InitializeTableFromTextFile") and len(node.input) > 1
    }
    return [
        (
            node.name,
            node.op,
            dtype_name(node.attr["key_dtype"].type),
            dtype_name(node.attr["value_dtype"].type),
            filled.get(node.name, ""),
        )
        for node in graph_def.node
        if node.op.startswith(_TABLES)
    ]


def _constant_text(node: Any) -> str:
    if node is None or node.op != "Const" or not node.attr["value"].tensor.string_val:
        return ""
    text: str = os.path.basename(node.attr["value"].tensor.string_val[0].decode(errors="replace"))
    return text


def asset_files(meta: Any) -> list[str]:
    """Return the names of a MetaGraph's assets; the builder of TensorFlow 1 keeps them in a collection.

    Raises:
        DataError: that collection is damaged.
    """
    found = [asset.filename for asset in meta.asset_file_def]
    if not found and "saved_model_assets" in meta.collection_def:
        packed = meta.collection_def["saved_model_assets"].any_list.value
        try:
            found = [messages.AssetFileDef.FromString(entry.value).filename for entry in packed]
        except DecodeError as error:
            raise DataError(f"the collection saved_model_assets is damaged: {error}") from None
    return list(dict.fromkeys(found))


def ancestors(graph_def: Any, roots: Sequence[str]) -> set[str]:
    """Return the names of the nodes that some depend on, themselves included."""
    nodes = {node.name: node for node in graph_def.node}
    pending, found = [node_name(root) for root in roots], set()
    while pending:
        name = pending.pop()
        if name in found or name not in nodes:
            continue
        found.add(name)
        pending += [node_name(i) for i in nodes[name].input]
    return found
