"""Lookups in tables: sparsify_gather; inputs in a known range: quantize_placeholders; and ranges of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.export.transforms.graph import (
    GraphIndex,
    Request,
    attribute,
    constant,
    input_name,
    split_input,
    unused_dropped,
    with_nodes,
)

__all__ = ["quantize_placeholders", "sparsify_gather", "widen_empty_ranges"]

# TensorFlow's tool gives constants of nothing but zeros the range up to float32's smallest number, and dividing by it
# makes them NaN.
_EMPTY = 1e-30


def sparsify_gather(graph_def: Any, request: Request) -> Any:
    """Store only the rows of tables that are not all zero; an index is looked for among theirs by bisection.

    Indices outside the table, for which the original may raise an error, give zeros.

    Args:
        graph_def: frozen.
        request: `max_density`.

    Returns:
        The new graph.
    """
    density = float(request.argument("max_density"))
    index = GraphIndex(graph_def)
    nodes: list[Any] = []
    for node in graph_def.node:
        table = _table(index, node)
        used = None if table is None else np.flatnonzero(table.reshape(len(table), -1).any(1))
        if table is None or used is None or len(used) + 1 > density * len(table):
            nodes.append(node)
        else:
            nodes.extend(_lookup(node, table, used))
    return with_nodes(graph_def, unused_dropped(nodes, index, request.kept))


def _table(index: GraphIndex, node: Any) -> np.ndarray | None:
    """Return the constant table of a lookup along its first dimension; None for other nodes."""
    if node.op not in ("Gather", "GatherV2") or attribute(node, "batch_dims").i:
        return None
    axis = index.constant(node.input[2]) if node.op == "GatherV2" else np.zeros(())
    table = index.constant(node.input[0])
    if table is None or table.ndim == 0 or not len(table) or table.dtype.kind != "f":
        return None
    return table if axis is not None and not np.any(axis) else None


def _lookup(node: Any, table: np.ndarray, used: np.ndarray) -> list[Any]:
    """Return nodes that look up in the rows in use and one of zeros behind them.

    `place = lower_bound(rows in use + [largest number], ids)`; the row is `place` if that holds the id, else the last.
    """
    enum = attribute(node, "Tindices").type
    dtype, largest = (np.int64, 2**63 - 1) if enum == 9 else (np.int32, 2**31 - 1)
    keys = np.append(used, largest).astype(dtype)
    rows = np.concatenate([table[used], np.zeros_like(table[:1])])
    ids, name = node.input[1], node.name
    build = _Builder(type(node), f"{name}/sparse")
    integer, place_type = {"T": enum}, {"T": 3}
    flat = build.add("Reshape", [ids, build.const("row", np.asarray([1, -1], np.int32))], {**integer, "Tshape": 3})
    bounds = [build.const("keys", keys[None]), flat]
    places = build.add("LowerBound", bounds, {**integer, "out_type": 3})
    shape = build.add("Shape", [ids], {**integer, "out_type": 3})
    place = build.add("Reshape", [places, shape], {**place_type, "Tshape": 3}, "place")
    axis = build.const("axis", np.asarray(0, np.int32))
    gather = {"Tparams": enum, "Tindices": 3, "Taxis": 3}
    key = build.add("GatherV2", [build.const("key_list", keys), place, axis], gather, "key")
    hit = build.add("Equal", [key, ids], integer)
    zero = build.const("zero_row", np.asarray(len(used), np.int32))
    row = build.add("SelectV2", [hit, place, zero], place_type)
    values = build.const("rows", rows)
    last = {**gather, "Tparams": attribute(node, "Tparams").type}
    return [*build.nodes, build.named("GatherV2", name, [values, row, axis], last)]


class _Builder:
    """Makes nodes below a name."""

    def __init__(self, node_type: Any, scope: str) -> None:
        self.nodes: list[Any] = []
        self._type = node_type
        self._scope = scope

    def const(self, name: str, value: np.ndarray) -> str:
        """Add a constant and return its name."""
        node = self._type()
        constant(node, f"{self._scope}/{name}", value)
        self.nodes.append(node)
        return str(node.name)

    def add(self, op: str, inputs: list[str], types: dict[str, int], name: str = "") -> str:
        """Add an operation and return its name."""
        node = self.named(op, f"{self._scope}/{name or op}", inputs, types)
        self.nodes.append(node)
        return str(node.name)

    def named(self, op: str, name: str, inputs: list[str], types: dict[str, int]) -> Any:
        """Return an operation of that very name, without adding it."""
        node = self._type(name=name, op=op, input=inputs)
        for key, value in types.items():
            node.attr[key].type = value
        return node


def quantize_placeholders(graph_def: Any, request: Request) -> Any:
    """Quantize float inputs in a range that is known, and give the graph what is left of them.

    Args:
        graph_def: any graph.
        request: `input_min` and `input_max`.

    Returns:
        The new graph; inputs have the names and types that they had.
    """
    low, high = (np.asarray(float(request.argument(key)), np.float32) for key in ("input_min", "input_max"))
    chosen = {n.name for n in graph_def.node if n.op == "Placeholder" and attribute(n, "dtype").type == 1}
    made = with_nodes(graph_def, ())
    for node in graph_def.node:
        copy = made.node.add()
        copy.CopyFrom(node)
        for i, text in enumerate(node.input):
            name, port = split_input(text)
            if name in chosen and port == 0:
                copy.input[i] = input_name(f"{name}/eightbit/dequantize", 0)
        if node.name in chosen:
            made.node.extend(_quantized(type(node), node.name, low, high))
    return made


def _quantized(node_type: Any, name: str, low: np.ndarray, high: np.ndarray) -> list[Any]:
    build = _Builder(node_type, f"{name}/eightbit")
    quantized = build.add(
        "QuantizeV2", [name, build.const("min", low), build.const("max", high)], {"T": 12}, "quantize"
    )
    restored = build.add("Dequantize", [quantized, f"{quantized}:1", f"{quantized}:2"], {"T": 12}, "dequantize")
    for node in build.nodes:
        if node.name in (quantized, restored):
            node.attr["mode"].s = b"MIN_FIRST"
    return build.nodes


def widen_empty_ranges(graph_def: Any) -> None:
    """Give weights in eight bits that are all the same, zero, a range that they can be restored with, in place.

    Args:
        graph_def: as TensorFlow's quantize_weights leaves it.
    """
    index = GraphIndex(graph_def)
    for node in graph_def.node:
        if node.op != "Dequantize":
            continue
        low, high = index.constant(node.input[1]), index.constant(node.input[2])
        if low is not None and high is not None and low.ndim == 0 and 0 <= high - low < _EMPTY:
            end = index.node(node.input[2])
            constant(end, end.name, np.asarray(low + 1, np.float32))
