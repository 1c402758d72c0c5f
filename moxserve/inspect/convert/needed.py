"""Which entries of a checkpoint the signatures of a graph need: found in the graph, without TensorFlow.

A graph restores its variables with RestoreV2, which has the keys as a constant, and an assignment for each. That leads
from the node of a variable to its key, in graphs of TensorFlow 1 and 2 alike; the latter restore inside a function that
gets the variables as arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.inspect.graphs import ancestors
from moxserve.inspect.protos import read_graph_file
from moxserve.protocol.tensors import from_proto
from moxserve.types import INIT_SIGNATURE, node_name

__all__ = ["needed_keys"]

_ASSIGN = ("Assign", "AssignVariableOp")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def needed_keys(path: str, tags: Collection[str] = (), outputs: Mapping[str, str] | None = None) -> set[str]:
    """Return the keys in the checkpoint of the variables that a graph's outputs depend on.

    Args:
        path: a SavedModel's graph file, or a `.meta` file.
        tags: of the MetaGraph.
        outputs: alias -> tensor; without them the outputs of all signatures.

    Raises:
        UsageError: there are no signatures, or no such tensor.
    """
    meta = read_graph_file(path).meta_graph(tags)
    roots = list((outputs or {}).values()) or list(_signature_outputs(meta))
    if not roots:
        raise UsageError(
            f"{path} has no signatures, so nothing says which variables are needed",
            hint="--output NAME=TENSOR, or --all",
        )
    nodes = {node.name for node in meta.graph_def.node}
    for root in roots:
        if node_name(root) not in nodes:
            raise UsageError(f"{path} has no tensor {root!r}; {did_you_mean(node_name(root), nodes)}")
    reached = ancestors(meta.graph_def, roots)
    return {key for node, key in _restored(meta.graph_def) if node in reached}


def _signature_outputs(meta: Any) -> Iterator[str]:
    for key, definition in meta.signature_def.items():
        if key == INIT_SIGNATURE:
            continue
        for info in definition.outputs.values():
            if info.WhichOneof("encoding") == "coo_sparse":
                yield info.coo_sparse.values_tensor_name
            elif info.WhichOneof("encoding") == "composite_tensor":
                yield from (component.name for component in info.composite_tensor.components)
            else:
                yield info.name


def _restored(graph_def: Any) -> Iterator[tuple[str, str]]:
    """Yield the node of each variable that the graph restores, with its key."""
    yield from _assigned(graph_def.node)
    functions = {function.signature.name: function for function in graph_def.library.function}
    for call in graph_def.node:
        function = functions.get(call.attr["f"].func.name) if call.op in _CALLS else None
        if function is None or not any(node.op == "RestoreV2" for node in function.node_def):
            continue
        places = {arg.name: i for i, arg in enumerate(function.signature.input_arg)}
        for argument, key in _assigned(function.node_def):
            if argument in places:
                yield node_name(call.input[places[argument]]), key


def _assigned(nodes: Any) -> Iterator[tuple[str, str]]:
    """Yield what is assigned a restored value among some nodes: name of the variable's node or argument, and key."""
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        if node.op in _ASSIGN:
            key = _key_of(by_name, node.input[1])
            if key:
                yield node_name(node.input[0]), key


def _key_of(by_name: Mapping[str, Any], tensor: str) -> str:
    """Return the key of a restored tensor, followed through what passes it on; empty when it is none."""
    for _ in range(10):
        node = by_name.get(node_name(tensor))
        if node is None:
            return ""
        if node.op == "RestoreV2":
            return _nth_key(by_name.get(node_name(node.input[1])), tensor.rpartition(":")[2])
        if node.op not in ("Identity", "Cast", "Reshape", "Bitcast"):
            return ""
        tensor = node.input[0]
    return ""


def _nth_key(names: Any, index: str) -> str:
    """Return the key of one output of RestoreV2, from the constant with all of them."""
    if names is None or names.op != "Const":
        return ""
    keys = from_proto(names.attr["value"].tensor).reshape(-1)
    place = int(index) if index.isdecimal() else 0
    return str(keys[place].decode(errors="replace")) if place < len(keys) else ""
