"""Looking at GraphDefs and changing them: nodes by name, who uses what, constants, and what makes a graph valid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import ExportError, did_you_mean

__all__ = [
    "GraphIndex",
    "Request",
    "attribute",
    "constant",
    "digests",
    "input_name",
    "problem_of",
    "reachable",
    "replaced",
    "split_input",
    "unused_dropped",
    "with_nodes",
]

CONTROL = -1
_THROUGH = ("Identity", "StopGradient", "PreventGradient")


@dataclass(frozen=True)
class Request:
    """What one of our own transforms is asked to do.

    Attributes:
        inputs: names of the nodes that are fed.
        outputs: names of the nodes that are fetched.
        argument: value of an argument, or its default, as text.
        arguments: each value that was given for an argument.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    argument: Callable[[str], str]
    arguments: Callable[[str], list[str]]

    @property
    def kept(self) -> frozenset[str]:
        """Names that must stay."""
        return frozenset((*self.inputs, *self.outputs))


def attribute(node: Any, name: str) -> Any:
    """Return an attribute of a node to read, an empty one where it has none: `node.attr[name]` would add it."""
    if name in node.attr:
        return node.attr[name]
    from tensorflow.core.framework import attr_value_pb2

    return attr_value_pb2.AttrValue()


def split_input(text: str) -> tuple[str, int]:
    """Return the node that an input names and which of its outputs; -1 for a control edge."""
    if text.startswith("^"):
        return text[1:], CONTROL
    name, _, port = text.partition(":")
    return name, int(port or 0)


def input_name(name: str, port: int) -> str:
    """Return the text of an input: the contrary of `split_input`."""
    if port == CONTROL:
        return f"^{name}"
    return f"{name}:{port}" if port else name


class GraphIndex:
    """Nodes of a GraphDef by name, and who uses which of their outputs. The graph must not be changed meanwhile."""

    def __init__(self, graph_def: Any) -> None:
        self.nodes: dict[str, Any] = {node.name: node for node in graph_def.node}
        self.users: dict[str, list[tuple[Any, int]]] = {}
        for node in graph_def.node:
            for text in node.input:
                name, port = split_input(text)
                self.users.setdefault(name, []).append((node, port))

    def node(self, text: str) -> Any:
        """Return the node that an input names."""
        return self.nodes[split_input(text)[0]]

    def constant(self, text: str) -> np.ndarray | None:
        """Return the value of an input that is a constant, also behind Identity; None when it is not one."""
        name, port = split_input(text)
        node = self.nodes.get(name)
        while node is not None and port == 0 and node.op in _THROUGH and len(node.input) == 1:
            name, port = split_input(node.input[0])
            node = self.nodes.get(name)
        if node is None or port != 0 or node.op != "Const" or node.input:
            return None  # what a constant waits for would be lost
        from tensorflow.python.framework import tensor_util

        return np.asarray(tensor_util.MakeNdarray(attribute(node, "value").tensor))

    def only_user(self, name: str) -> Any | None:
        """Return the node that alone uses a node, once and through its first output; None otherwise."""
        users = self.users.get(name, [])
        return users[0][0] if len(users) == 1 and users[0][1] == 0 else None


def constant(node: Any, name: str, value: np.ndarray) -> None:
    """Make a NodeDef a constant."""
    import tensorflow as tf

    node.Clear()
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = tf.dtypes.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def with_nodes(graph_def: Any, nodes: Iterable[Any]) -> Any:
    """Return a graph of other nodes with the functions and versions of a graph."""
    made = type(graph_def)()
    made.versions.CopyFrom(graph_def.versions)
    made.library.CopyFrom(graph_def.library)
    made.node.extend(nodes)
    return made


def reachable(graph_def: Any, outputs: Iterable[str], stop: Iterable[str] = ()) -> set[str]:
    """Return the names of the nodes that outputs need, up to and with those where to stop.

    Raises:
        ExportError: a node that is needed does not exist.
    """
    nodes = {node.name: node for node in graph_def.node}
    left = list(outputs)
    seen, ends = set(left), set(stop)
    while left:
        name = left.pop()
        if name not in nodes:
            raise ExportError(f"the graph has no node {name!r}; {did_you_mean(name, nodes)}")
        if name in ends:
            continue
        for text in nodes[name].input:
            source = split_input(text)[0]
            if source not in seen:
                seen.add(source)
                left.append(source)
    return seen


def unused_dropped(nodes: Sequence[Any], before: GraphIndex, kept: Iterable[str]) -> list[Any]:
    """Return nodes without those that were used before and are not any more, as weights that were replaced."""
    left, stay = list(nodes), set(kept)
    while True:
        used = {split_input(text)[0] for node in left for text in node.input} | stay
        found = [node for node in left if node.name in used or not before.users.get(node.name)]
        if len(found) == len(left):
            return left
        left = found


def replaced(
    graph_def: Any, index: GraphIndex, made: Mapping[str, Sequence[Any]], gone: Container[str], request: Request
) -> Any:
    """Return a graph with other nodes in the place of some.

    Args:
        graph_def: the graph.
        index: of it.
        made: name of a node -> what stands in its place.
        gone: names of nodes with nothing in their place; constants that only these used go, too.
        request: names what must stay.
    """
    nodes: list[Any] = []
    for node in graph_def.node:
        if node.name in made:
            nodes.extend(made[node.name])
        elif node.name not in gone:
            nodes.append(node)
    return with_nodes(graph_def, unused_dropped(nodes, index, request.kept))


def digests(graph_def: Any) -> list[bytes]:
    """Return a digest of each node, in the graph's order: equal ones, equal nodes."""
    return [
        hashlib.blake2b(node.SerializeToString(deterministic=True), digest_size=16).digest() for node in graph_def.node
    ]


def problem_of(graph_def: Any, before: Any, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Say why a transformed graph cannot take the place of the one before; empty when it can.

    Args:
        graph_def: after the transform.
        before: the graph before it.
        inputs: names of the nodes that signatures feed.
        outputs: names of the nodes that they fetch.
    """
    nodes = {node.name: node for node in graph_def.node}
    if len(nodes) != len(graph_def.node):
        return "two nodes have the same name"
    for name in (*inputs, *outputs):
        if name not in nodes:
            return f"node {name!r}, by which signatures know an {'input' if name in inputs else 'output'}, is gone"
    old = {node.name: node for node in before.node}
    for name in inputs:
        if (
            name in old
            and old[name].op == nodes[name].op
            and (attribute(nodes[name], "dtype") != attribute(old[name], "dtype"))
        ):
            return f"input {name!r} has another element type"
    for node in graph_def.node:
        for text in node.input:
            if split_input(text)[0] not in nodes:
                return f"node {node.name!r} reads {text!r}, which does not exist"
    return _unknown_operation(graph_def, {node.op for node in before.node})


def _unknown_operation(graph_def: Any, known: set[str]) -> str:
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in graph_def.library.function}
    for node in graph_def.node:
        if node.op not in known and node.op not in functions and op_def_registry.get(node.op) is None:
            return f"node {node.name!r} is of type {node.op!r}, which TensorFlow does not know"
    return ""
