"""Turns the variables of a loaded SavedModel into constants, where nothing that a request can run changes them.

TensorFlow then folds batch normalization and the like into the weights, which it cannot do with variables: a network
of convolutions gets faster by a third or more. Answers change by rounding only. A graph that writes to a variable, or
that holds other state (tables, queues, iterators), stays as it is: its state lives in its session.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from moxserve.types import node_name

__all__ = ["frozen_graph"]

logger = logging.getLogger(__name__)

_VARIABLES = frozenset(("VarHandleOp", "VariableV2", "Variable"))
_READERS = frozenset((
    "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp", "Identity",
    "PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "While", "StatelessWhile", "Case",
    "StatelessCase", "NoOp", "_Arg", "Enter", "Switch", "IsVariableInitialized",
))  # fmt: skip
_MAX_BYTES = 1 << 30


def frozen_graph(tf: Any, session: Any, outputs: Iterable[str], inputs: Iterable[str]) -> Any:
    """Return a GraphDef without variables that computes these tensors; None when there must not be one.

    Args:
        tf: the module.
        session: with the variables restored.
        outputs: names of tensors that requests fetch, such as `y:0`.
        inputs: names of tensors that requests feed.
    """
    from tensorflow.python.util import deprecation

    graph_def = session.graph.as_graph_def()
    fed = {node_name(name) for name in inputs}
    names = sorted({node_name(name) for name in outputs})
    reached = _reached(graph_def, names, fed)
    functions = {f.signature.name: f for f in graph_def.library.function}
    reason = _state(reached, functions)
    if not reason:
        variables = [node for node in reached if node.op in _VARIABLES]
        if not variables:
            return None
        size = sum(_size(node) for node in variables)
        reason = f"its variables take {size >> 20} MiB" if size > _MAX_BYTES else ""
    if reason:
        logger.info("the graph is not frozen: %s", reason)
        return None
    with deprecation.silence():
        return tf.compat.v1.graph_util.convert_variables_to_constants(session, graph_def, [*names, *sorted(fed)])


def _reached(graph_def: Any, names: Iterable[str], fed: Iterable[str]) -> list[Any]:
    """Return the nodes that a request can run: those that the outputs need, up to what is fed."""
    nodes = {node.name: node for node in graph_def.node}
    left, seen = list(names), set(names)
    found, stop = [], set(fed)
    while left:
        node = nodes[left.pop()]
        found.append(node)
        if node.name in stop:
            continue
        for text in node.input:
            name = node_name(text)
            if name not in seen:
                seen.add(name)
                left.append(name)
    return found


def _state(nodes: Iterable[Any], functions: Mapping[str, Any]) -> str:
    """Return why nodes depend on state that a constant cannot stand in for; empty when they do not."""
    from tensorflow.python.framework import op_def_registry

    left, seen = list(nodes), set()
    while left:
        node = left.pop()
        for value in node.attr.values():
            for name in [value.func.name, *(f.name for f in value.list.func)]:
                if name in functions and name not in seen:
                    seen.add(name)
                    left.extend(functions[name].node_def)
        if node.op in functions and node.op not in seen:
            seen.add(node.op)
            left.extend(functions[node.op].node_def)
        if node.op in _VARIABLES or node.op in _READERS or node.op in functions:
            continue
        definition = op_def_registry.get(node.op)
        if definition is None:
            return f"operation {node.op} is not known"
        if _touches_state(definition):
            return f"operation {node.op} ({node.name}) keeps or changes state"
    return ""


def _touches_state(definition: Any) -> bool:
    if any(arg.is_ref for arg in (*definition.input_arg, *definition.output_arg)):
        return True
    resource = 20  # DT_RESOURCE
    return any(arg.type == resource for arg in (*definition.input_arg, *definition.output_arg))


def _size(node: Any) -> int:
    shape, enum = node.attr["shape"].shape, node.attr["dtype"].type
    count = 1
    for dim in shape.dim:
        count *= max(1, dim.size)
    from moxserve.errors import InvalidArgument
    from moxserve.types import dtype_by_enum

    try:
        return count * dtype_by_enum(enum).numpy.itemsize
    except InvalidArgument:
        return count
