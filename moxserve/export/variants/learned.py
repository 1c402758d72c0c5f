"""Graphs with learned int8 ranges, made fit for converters that read the ranges out of fake-quantization operations.

Such converters quantize whatever has a range on its inputs, and cannot be told to leave an operation out; so here the
ranges are taken away from the operations that are to stay in floating point.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moxserve import file
from moxserve.errors import ExportError
from moxserve.export.variants.quality import matching
from moxserve.export.variants.work import FROZEN_GRAPH, Work
from moxserve.types import Signature, node_name

__all__ = ["ranged_operations", "read_frozen", "refuse_floating", "spell_out_softmax", "with_ranges", "without_ranges"]

_FAKE_QUANT = "FakeQuantWithMinMax"
# What hands values on as they are: a range before it is one of its result.
_PASSING = frozenset(("Identity", "Reshape", "Transpose", "Squeeze", "ExpandDims"))


def read_frozen(work: Work) -> Any:
    """Return the GraphDef of a work."""
    from tensorflow.core.framework import graph_pb2

    return graph_pb2.GraphDef.FromString(file.read(os.path.join(work.model, FROZEN_GRAPH), binary=True))


def refuse_floating(work: Work) -> None:
    """Refuse to make anything but int8 of a graph with learned ranges.

    Raises:
        ExportError: it has some: this runtime takes them for int8, whatever is asked for.
    """
    if work.learned:
        raise ExportError(
            f"{work.target.name} is not made of a graph with learned int8 ranges: {work.target.format} would compute "
            "in int8 all the same",
            hint=f"--{work.target.format} int8",
        )


@contextmanager
def with_ranges(
    work: Work, in_float: Collection[str] = (), *, plain_softmax: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """Write the graph with the ranges of excluded operations taken away.

    Args:
        work: its settings exclude operations.
        in_float: names of further ones.
        plain_softmax: also spell out the softmaxes at the end.

    Yields:
        A folder as `Work.model`, which is gone after the block, and the excluded operations with their patterns.

    Raises:
        UsageError: a pattern matches nothing that has a range.
    """
    from moxserve.export.frozen import FrozenGraph

    graph_def = read_frozen(work)
    excluded = matching(work.settings.exclude, {name: (name,) for name in ranged_operations(graph_def)})
    without_ranges(graph_def, {*excluded, *in_float})
    if plain_softmax:
        spell_out_softmax(graph_def, work.signature)
    with file.scratch_directory() as folder:
        model = os.path.join(folder, "model")
        FrozenGraph(graph_def, work.signature).write(model)
        yield model, excluded


def ranged_operations(graph_def: Any) -> list[str]:
    """Return the names of the operations with a learned range on an input, in the graph's order."""
    nodes = {node.name: node for node in graph_def.node}
    return [
        node.name
        for node in graph_def.node
        if not _ranged(node) and node.op not in _PASSING and any(_range_before(nodes, text) for text in node.input)
    ]


def without_ranges(graph_def: Any, operations: Collection[str]) -> None:
    """Let operations read what the fake quantization before them reads, in place.

    Args:
        graph_def: the graph.
        operations: names of nodes.
    """
    nodes = {node.name: node for node in graph_def.node}
    for node in [nodes[name] for name in operations]:
        for i, text in enumerate(node.input):
            if _range_before(nodes, text):
                node.input[i] = _copied_without(graph_def, nodes, text)


def _ranged(node: Any) -> bool:
    return node.op.startswith(_FAKE_QUANT)


def _range_before(nodes: Mapping[str, Any], text: str) -> bool:
    if text.startswith("^"):
        return False
    node = nodes[node_name(text)]
    return _ranged(node) or (node.op in _PASSING and _range_before(nodes, node.input[0]))


def _copied_without(graph_def: Any, nodes: dict[str, Any], text: str) -> str:
    """Return a tensor with the value of another without its fake quantization; what passes it on is copied."""
    node = nodes[node_name(text)]
    if _ranged(node):
        return str(node.input[0])
    source = _copied_without(graph_def, nodes, node.input[0])
    name = f"{node.name}/without_range"
    if name not in nodes:
        copy = graph_def.node.add()
        copy.CopyFrom(node)
        copy.name = name
        copy.input[0] = source
        nodes[name] = copy
    return name


def spell_out_softmax(graph_def: Any, signature: Signature) -> None:
    """Write the softmaxes that end a signature as exponentials over their sum, in place: nobody quantizes that.

    An int8 softmax knows no probability below 1/256. The quotient is a product: converters know a softmax when they see
    one.
    """
    nodes = {node.name: node for node in graph_def.node}
    for node in [node for node in _ends(nodes, signature) if node.op == "Softmax"]:
        _spell_out(graph_def, node)


def _ends(nodes: Mapping[str, Any], signature: Signature) -> Iterator[Any]:
    """Yield the nodes that compute the outputs, each once."""
    seen = set()
    for spec in signature.outputs.values():
        node = nodes[node_name(spec.tensor)]
        while node.op in _PASSING:
            node = nodes[node_name(node.input[0])]
        if node.name not in seen:
            seen.add(node.name)
            yield node


def _spell_out(graph_def: Any, node: Any) -> None:
    kind, source, name = node.attr["T"].type, node.input[0], node.name

    def add(suffix: str, op: str, *inputs: str) -> str:
        made = graph_def.node.add(name=f"{name}/{suffix}", op=op, input=inputs)
        made.attr["T"].type = kind
        if op in ("Max", "Sum"):
            made.attr["keep_dims"].b = True
            made.attr["Tidx"].type = 3  # DT_INT32
        return made.name

    axis = graph_def.node.add(name=f"{name}/last", op="Const")
    axis.attr["dtype"].type = 3
    axis.attr["value"].tensor.dtype = 3
    axis.attr["value"].tensor.tensor_shape.dim.add(size=1)
    axis.attr["value"].tensor.int_val.append(-1)
    largest = add("largest", "Max", source, axis.name)
    powers = add("powers", "Exp", add("below", "Sub", source, largest))
    total = add("total", "Sum", powers, axis.name)
    node.op = "Mul"
    node.input[:] = [powers, add("share", "Reciprocal", total)]
