"""Which operations of the original graph an ONNX operation was made of, so that users can name it by either name."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from moxserve.export.variants.onnx.model import nodes_of
from moxserve.types import Signature

__all__ = ["labels_of", "names_of_operations"]

# Operations of TensorFlow that ONNX operations with weights come from.
_WEIGHTED = ("Conv", "DepthwiseConv", "MatMul", "BatchMatMul", "Gather", "Einsum")

# tf2onnx numbers what it adds: `conv/Conv2D__12`.
_NUMBERED = re.compile(r"__\d+$")
# tensor -> the operation that makes it, and what that reads
_Edges = Mapping[str, tuple[str, tuple[str, ...]]]


def names_of_operations(
    model: Any, float_model: Any, graph_def: Any, signature: Signature
) -> dict[str, tuple[str, ...]]:
    """Find the names that users may know each operation of a model by.

    Converters fuse operations (a convolution swallows its batch normalization and bias), but keep the name of the
    tensor at the end. So what was swallowed lies between that tensor and the next one that is still there.

    Args:
        model: made from `float_model`, perhaps with fused operations; each node has a name.
        float_model: made from `graph_def`.
        graph_def: the graph of TensorFlow.
        signature: whose aliases are the names of the models' inputs and outputs.

    Returns:
        node of `model` -> names in `float_model` and in `graph_def`, from its end backwards.
    """
    aliases = {alias: s.tensor for specs in (signature.inputs, signature.outputs) for alias, s in specs.items()}
    onnx_edges = {t: (n.name, tuple(n.input)) for n in float_model.graph.node for t in n.output if t}
    tf_edges = {n.name: (n.name, tuple(_tf_name(i, {}) for i in n.input)) for n in graph_def.node}
    kept = {tensor for node in model.graph.node for tensor in node.output}
    kept_tf = {name for name in (_tf_name(tensor, aliases) for tensor in kept) if name in tf_edges}
    found: dict[str, tuple[str, ...]] = {}
    for node in nodes_of(model.graph):
        inner = _between(onnx_edges, node.output, kept - set(node.output))
        starts = [_tf_name(end, aliases) for end in node.output]
        starts += [_NUMBERED.sub("", name) for name in (*inner, node.name)]
        starts = [name for name in starts if name in tf_edges]
        found[node.name] = (*inner, *_between(tf_edges, starts, kept_tf.difference(starts)))
    _name_after_readers(model, found, tf_edges.keys())
    return found


def _name_after_readers(model: Any, found: dict[str, tuple[str, ...]], original: Collection[str]) -> None:
    """Give what a rewriter has made anew, and bears no old name, the names that lie before its only reader."""
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, set()).add(node.name)
    for node in model.graph.node:
        after = set().union(*(readers.get(tensor, ()) for tensor in node.output))
        if len(after) == 1 and not any(name in original for name in found[node.name]):
            found[node.name] += found[after.pop()]


def labels_of(names: Mapping[str, Sequence[str]], graph_def: Any) -> dict[str, str]:
    """Choose the names that users are told: those in the original graph, where operations have one, each another.

    Args:
        names: operation -> all its names, of `names_of_operations`.
        graph_def: the original graph.

    Returns:
        operation -> name.
    """
    weighted = {node.name for node in graph_def.node if node.op.startswith(_WEIGHTED)}
    labels: dict[str, str] = {}
    taken = set(names)
    for node, known in names.items():
        nearest = next((name for name in known if name in weighted), node)
        labels[node] = nearest if nearest not in taken - {node} else node
        taken.add(labels[node])
    return labels


def _tf_name(tensor: str, aliases: Mapping[str, str]) -> str:
    return aliases.get(tensor, tensor).lstrip("^").split(":")[0]


def _between(edges: _Edges, starts: Iterable[str], stops: set[str]) -> tuple[str, ...]:
    """Return the operations from some tensors back to others, the nearest first, constants left out."""
    todo, seen = deque(starts), set(stops)
    names: dict[str, None] = {}
    while todo:
        tensor = todo.popleft()
        if tensor in seen or tensor not in edges:
            continue
        seen.add(tensor)
        name, sources = edges[tensor]
        if sources:
            names[name] = None
        todo.extend(sources)
    return tuple(names)
