"""Transforms that take nodes and edges away: remove_nodes, remove_control_dependencies, strip_unused_nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moxserve.errors import ExportError
from moxserve.export.transforms.graph import (
    CONTROL,
    GraphIndex,
    Request,
    input_name,
    reachable,
    split_input,
    with_nodes,
)
from moxserve.export.transforms.language import parse_shape

__all__ = ["remove_control_dependencies", "remove_nodes", "strip_unused_nodes"]

_PLACEHOLDER = "Placeholder"
# A control edge from one of these says in which branch or iteration a node runs, not only when.
_CONTROL_FLOW = frozenset((
    "Switch", "RefSwitch", "_SwitchN", "Merge", "RefMerge", "Enter", "RefEnter", "NextIteration", "RefNextIteration",
    "Exit", "RefExit", "LoopCond",
))  # fmt: skip


def remove_nodes(graph_def: Any, request: Request) -> Any:
    """Delete operations of some types; what read them reads their first input.

    An operation stays if it is an input or an output, waits for others, gives more than its first output to others,
    has more than `max_inputs` inputs, or says which branch of a condition others run in.

    Args:
        graph_def: any graph.
        request: `op` once or more, `max_inputs`.

    Returns:
        The new graph.
    """
    types, most = set(request.arguments("op")), int(request.argument("max_inputs"))
    index = GraphIndex(graph_def)
    replaced = {
        node.name: node.input[0]
        for node in graph_def.node
        if node.op in types and node.name not in request.kept and _removable(index, node, most)
    }
    made = with_nodes(graph_def, (node for node in graph_def.node if node.name not in replaced))
    for node in made.node:
        inputs = list(dict.fromkeys(_followed(text, replaced) for text in node.input if text.startswith("^")))
        data = [_followed(text, replaced) for text in node.input if not text.startswith("^")]
        if [*data, *inputs] != list(node.input):
            del node.input[:]
            node.input.extend([*data, *inputs])
    return made


def _removable(index: GraphIndex, node: Any, most: int) -> bool:
    sources = list(node.input)
    if not 1 <= len(sources) <= most or any(text.startswith("^") for text in sources):
        return False
    ports = [port for _, port in index.users.get(node.name, [])]
    if any(port > 0 for port in ports):
        return False
    return CONTROL not in ports or not _in_control_flow(index, node.name)


def _in_control_flow(index: GraphIndex, name: str) -> bool:
    """Tell whether a node is of old-style control flow, or an Identity behind one that is."""
    node = index.nodes.get(name)
    while node is not None and node.op not in _CONTROL_FLOW:
        if node.op != "Identity" or not node.input:
            return False
        node = index.nodes.get(split_input(node.input[0])[0])
    return node is not None


def _followed(text: str, replaced: Mapping[str, str]) -> str:
    name, port = split_input(text)
    while name in replaced:
        source, source_port = split_input(replaced[name])
        name, port = source, CONTROL if port == CONTROL else source_port
    return input_name(name, port)


def remove_control_dependencies(graph_def: Any, _request: Request) -> Any:
    """Delete control edges, except those that say which branch of a condition runs.

    Args:
        graph_def: any graph.
        _request: nothing of it is used.

    Returns:
        The new graph.
    """
    index = GraphIndex(graph_def)
    made = with_nodes(graph_def, graph_def.node)
    for node in made.node:
        kept = [
            text for text in node.input if not text.startswith("^") or _in_control_flow(index, split_input(text)[0])
        ]
        if len(kept) != len(node.input):
            del node.input[:]
            node.input.extend(kept)
    return made


def strip_unused_nodes(graph_def: Any, request: Request) -> Any:
    """Delete what the outputs do not need, and functions that nobody calls; inputs become placeholders.

    Args:
        graph_def: any graph.
        request: inputs and outputs; `type`, `shape` and the like for inputs that are no placeholders yet.

    Returns:
        The new graph.

    Raises:
        ExportError: an input or output is not in the graph, or a type is none.
    """
    needed = reachable(graph_def, request.outputs, request.inputs) | set(request.inputs)
    made = with_nodes(graph_def, (node for node in graph_def.node if node.name in needed))
    inner = [node for node in made.node if node.name in request.inputs and node.op != _PLACEHOLDER]
    if inner:
        known = _endpoints(graph_def, [node.name for node in inner])
        for node in inner:
            _make_placeholder(node, *_declared(request, node.name, *known[node.name]))
    _drop_functions(made)
    return made


def _endpoints(graph_def: Any, names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Return element type and shape of the first output of nodes."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        tensors = {name: graph.get_tensor_by_name(f"{name}:0") for name in names}
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _declared(request: Request, name: str, dtype: Any, shape: Any) -> tuple[Any, Any]:
    """Return what was asked for an input, or what the graph has there."""
    import tensorflow as tf

    named = request.arguments("name")
    wanted = {key: request.argument(key) if request.arguments(key) else None for key in ("type", "shape")}
    if name in named:
        for key in wanted:
            values = request.arguments(f"{key}_for_name")
            wanted[key] = values[named.index(name)] if values else wanted[key]
    if wanted["shape"] is not None:
        shape = tf.TensorShape(parse_shape(wanted["shape"]))
    if wanted["type"] is not None:
        try:
            dtype = tf.dtypes.as_dtype({"float": "float32", "double": "float64"}.get(wanted["type"], wanted["type"]))
        except TypeError:
            raise ExportError(f"input {name!r}: {wanted['type']!r} is no element type of TensorFlow") from None
    return dtype, shape


def _make_placeholder(node: Any, dtype: Any, shape: Any) -> None:
    node.op = _PLACEHOLDER
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = dtype.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(shape.as_proto())


def _drop_functions(graph_def: Any) -> None:
    functions = {function.signature.name: function for function in graph_def.library.function}
    pending, called = [graph_def.node], set[str]()
    while pending:
        for node in pending.pop():
            named = {node.op, *(f.name for v in node.attr.values() for f in (v.func, *v.list.func))}
            fresh = (named & functions.keys()) - called
            called |= fresh
            pending.extend(functions[name].node_def for name in fresh)
    gradients = [g for g in graph_def.library.gradient if g.function_name in called]
    called |= {g.gradient_func for g in gradients}
    if len(called) < len(functions):
        stay = [function for name, function in functions.items() if name in called]
        del graph_def.library.function[:], graph_def.library.gradient[:]
        graph_def.library.function.extend(stay)
        graph_def.library.gradient.extend(gradients)
