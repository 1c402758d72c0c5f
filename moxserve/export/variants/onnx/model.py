"""ONNX models as protos: their names, dimensions, operations and files. No TensorFlow, no runtime."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from moxserve.errors import ExportError, first_line
from moxserve.types import Signature, TensorSpec

__all__ = [
    "MODEL_FILE",
    "fit_signature",
    "initializers",
    "nodes_of",
    "op_counts",
    "opset_of",
    "output_names",
    "producers",
    "readers_of",
    "rename_tensors",
    "replace_nodes",
    "save",
]

MODEL_FILE = "model.onnx"
_DATA_FILE = "model.onnx.data"
# Protobuf ends at 2 GB; the graph around the weights needs some of it.
_MAX_BYTES = 1_900_000_000
_ELEMENTS = {  # TensorFlow's names where ONNX has others
    "float32": "FLOAT", "float64": "DOUBLE", "string": "STRING", "complex64": "COMPLEX64", "complex128": "COMPLEX128",
}  # fmt: skip


def nodes_of(graph: Any) -> Iterator[Any]:
    """Give the nodes of a graph and of the graphs inside them, in order."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def op_counts(model: Any) -> dict[str, int]:
    """Count the operations of a model by type, most frequent first."""
    return dict(Counter(node.op_type for node in nodes_of(model.graph)).most_common())


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operations that a model uses."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def initializers(model: Any) -> dict[str, Any]:
    """Return the constants of a model by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def producers(model: Any) -> dict[str, Any]:
    """Return the node that makes each tensor, by the tensor's name."""
    return {name: node for node in model.graph.node for name in node.output if name}


def readers_of(model: Any) -> dict[str, list[Any]]:
    """Return the nodes that read each tensor, those of inner graphs too, by the tensor's name."""
    found: dict[str, list[Any]] = {}
    for node in nodes_of(model.graph):
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def replace_nodes(model: Any, nodes: Sequence[Any]) -> None:
    """Give a model other nodes, and drop the constants that nothing reads any more.

    Args:
        model: changed in place.
        nodes: in order; those of the model itself may be among them.
    """
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph = model.graph
    del graph.node[:]
    graph.node.extend(copies)
    used = {value.name for value in graph.output} | readers_of(model).keys()
    alive = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(alive)


def output_names(signature: Signature) -> dict[str, str]:
    """Return what the outputs are called in a model, by alias: so, but for one that is an input's name as well."""
    taken = {*signature.inputs, *signature.outputs}
    names = {}
    for alias in signature.outputs:
        name = alias
        while name in signature.inputs or (name != alias and name in taken):
            name += "_out"
        taken.add(name)
        names[alias] = name
    return names


def fit_signature(model: Any, signature: Signature) -> None:
    """Name inputs and outputs by their aliases, give them the signature's shapes, and the inputs that are not used.

    A first dimension that varies is called `batch`, others `<alias>_<axis>`.

    Args:
        model: changed in place; its inputs and outputs bear the names of the graph's tensors.
        signature: what it computes.
    """
    outputs = output_names(signature)
    changes = {spec.tensor: alias for alias, spec in signature.inputs.items()}
    changes |= {spec.tensor: outputs[alias] for alias, spec in signature.outputs.items()}
    _rename(model.graph, changes)
    present = {value.name: value for value in model.graph.input}
    ordered = [present.get(alias) or _value(spec) for alias, spec in signature.inputs.items()]
    del model.graph.input[:]
    model.graph.input.extend(ordered)
    results = {value.name: value for value in model.graph.output}
    ordered = [results[name] for name in outputs.values()]
    del model.graph.output[:]
    model.graph.output.extend(ordered)
    sides = (signature.inputs, {outputs[alias]: spec for alias, spec in signature.outputs.items()})
    for specs, values in zip(sides, (model.graph.input, model.graph.output), strict=True):
        for value in values:
            _set_shape(value, specs[value.name])
    # What is inside is inferred anew from these.
    del model.graph.value_info[:]


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors, in inner graphs too, which see those outside; what bears a new name already makes way."""
    taken = {name for node in nodes_of(graph) for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    changes = dict(names)
    for alias in names.values():
        if alias in taken and alias not in names:
            place = next(f"{alias}__{i}" for i in range(len(taken) + 1) if f"{alias}__{i}" not in taken)
            taken.add(place)
            changes[alias] = place
    rename_tensors(graph, changes)


def rename_tensors(graph: Any, changes: Mapping[str, str]) -> None:
    """Rename tensors in place, also in inner graphs.

    Args:
        graph: of a model.
        changes: old name -> new name.
    """
    for node in nodes_of(graph):
        node.input[:] = [changes.get(name, name) for name in node.input]
        node.output[:] = [changes.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _apply_values(inner, changes)
    _apply_values(graph, changes)


def _apply_values(graph: Any, changes: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = changes.get(value.name, value.name)


def _value(spec: TensorSpec) -> Any:
    name = _ELEMENTS.get(spec.dtype.name, spec.dtype.name.upper())
    return onnx.helper.make_tensor_value_info(spec.name, onnx.TensorProto.DataType.Value(name), None)


def _set_shape(value: Any, spec: TensorSpec) -> None:
    if spec.shape is None:
        return  # the checker wants some shape; ONNX Runtime takes any rank for an empty one
    shape = value.type.tensor_type.shape
    shape.SetInParent()
    del shape.dim[:]
    for axis, size in enumerate(spec.shape):
        if size is None:
            shape.dim.add(dim_param="batch" if axis == 0 else f"{spec.name}_{axis}")
        else:
            shape.dim.add(dim_value=size)


def save(model: Any, directory: str, max_bytes: int = _MAX_BYTES) -> None:
    """Write a model as `model.onnx`, checked; the weights of a huge one lie beside it as `model.onnx.data`.

    Args:
        model: its weights are inside.
        directory: of the variant.
        max_bytes: from which size on the weights lie in a file of their own.

    Raises:
        ExportError: it breaks the rules of ONNX.
    """
    path = os.path.join(directory, MODEL_FILE)
    if model.ByteSize() > max_bytes:
        onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=_DATA_FILE)
    else:
        onnx.save(model, path)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX model is not valid: {first_line(error)}") from error
