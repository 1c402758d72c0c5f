"""What is quantized of a graph: layers with kernels and what is fused to them, the operations between them, and where
values must lie on a grid.

A layer is a kernel's operation with the bias, batch norm and activation that follow it, which every int8 runtime
computes as one. Values are put on a grid where a layer ends, where an operation between two layers ends, and where the
first layers take their input; operations that only move values, such as a maximum pool, need none of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.train_op import matches
from moxserve.tensorflow.executor.variables import model_name
from moxserve.tensorflow.graph_edit import GraphEdit, Kernel, find_kernels
from moxserve.tensorflow.quantization.batch_norm import BatchNorm, find_batch_norms

__all__ = ["FIXED_RANGES", "SAME_RANGE", "Layer", "Layers", "activation_after", "find_layers", "source_of"]

# Kernel's operation -> the input that is data.
_DATA_INPUT = {"Conv2D": 0, "DepthwiseConv2dNative": 0, "Conv2DBackpropInput": 2, "MatMul": 0}
_ACTIVATIONS = ("Relu", "Relu6")
_BIAS = ("BiasAdd", "Add", "AddV2")
# Look at a value without taking part in the model.
_WATCHERS = ("Shape", "ShapeN", "Size", "Rank", "HistogramSummary", "ImageSummary", "ScalarSummary", "IsFinite")

# Operations whose result has values of an input: that input.
_MOVES = {
    "Identity": 0, "Reshape": 0, "Squeeze": 0, "ExpandDims": 0, "Transpose": 0, "MaxPool": 0, "MaxPoolV2": 0, "Max": 0,
    "Pad": 0, "MirrorPad": 0, "StridedSlice": 0, "Slice": 0, "Split": 1, "SplitV": 0, "Unpack": 0, "Tile": 0,
    "SpaceToDepth": 0, "DepthToSpace": 0, "SpaceToBatchND": 0, "BatchToSpaceND": 0, "ResizeNearestNeighbor": 0,
    "GatherV2": 0, "ReverseV2": 0, "StopGradient": 0, "PreventGradient": 0, "CheckNumerics": 0,
}  # fmt: skip
# Operations whose inputs and output must share one grid in TFLite.
SAME_RANGE = ("ConcatV2", "AvgPool", "ResizeBilinear", "Pack")
# Grids that TFLite prescribes: 1/256 from 0, and 1/128 from -1.
FIXED_RANGES = {"Sigmoid": (0.0, 255 / 256), "Softmax": (0.0, 255 / 256), "Tanh": (-1.0, 127 / 128)}
_BETWEEN = (
    *("Add", "AddV2", "AddN", "Sub", "Mul", "Mean", "LeakyRelu"),
    *_ACTIVATIONS,
    *SAME_RANGE,
    *FIXED_RANGES,
)
_RANDOM = ("RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2")


@dataclass
class Layer:
    """A kernel's operation with what is fused to it.

    Attributes:
        kernel: the operation.
        data: index of its input that is data.
        bias: what is added to each channel, or None.
        norm: the batch norm, or None.
        linear: the tensor before the activation.
        operations: names of all that belongs to it, the activation included.
    """

    kernel: Kernel
    data: int
    linear: Any
    bias: Any = None
    norm: BatchNorm | None = None
    operations: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Name of the kernel's variable."""
        return model_name(self.kernel.variable)


@dataclass
class Layers:
    """What is quantized of a graph.

    Attributes:
        layers: those with kernels.
        norms: batch norms between layers that cannot be folded into a kernel.
        between: other operations between layers.
        left_out: layers that stay in floating point, because they were excluded.
    """

    layers: list[Layer] = field(default_factory=list)
    norms: list[BatchNorm] = field(default_factory=list)
    between: list[Any] = field(default_factory=list)
    left_out: list[Layer] = field(default_factory=list)


def find_layers(edit: GraphEdit, exclude: Sequence[str]) -> Layers:
    """Find what is to be quantized.

    Args:
        edit: the graph.
        exclude: patterns of names of kernels' variables.
    """
    found = Layers()
    norms = {norm.data.name: norm for norm in find_batch_norms(edit)}
    for kernel in find_kernels(edit.operations):
        if not _computes_layer(kernel, edit):
            continue
        layer = _layer(kernel, norms, edit)
        (found.left_out if matches(layer.name, exclude) else found.layers).append(layer)
    _add_between(found, norms, edit)
    return found


def _computes_layer(kernel: Kernel, edit: GraphEdit) -> bool:
    op = kernel.operation
    data = _DATA_INPUT.get(op.type)
    if data is None or kernel.index == data or op.outputs[0].dtype != tf.float32:
        return False
    if op.type == "MatMul" and op.get_attr("transpose_a"):
        return False
    return edit.depends_on_data(op.inputs[data])


def _layer(kernel: Kernel, norms: dict[str, BatchNorm], edit: GraphEdit) -> Layer:
    layer = Layer(kernel, _DATA_INPUT[kernel.operation.type], kernel.operation.outputs[0])
    layer.operations.add(kernel.operation.name)
    only = _only_consumer(layer.linear, edit)
    if only is not None and only[0].type in _BIAS:
        operation, index = only
        other = operation.inputs[1 - index]
        if other.shape.rank == 1 and not edit.depends_on_data(other):
            layer.bias, layer.linear = other, operation.outputs[0]
            layer.operations.add(operation.name)
    norm = norms.get(layer.linear.name)
    if norm is not None and _only_consumer(layer.linear, edit, norm.inner) is not None:
        layer.norm, layer.linear = norm, norm.output
        layer.operations |= norm.inner
    layer.operations.add(activation_after(layer.linear, edit).op.name)
    return layer


def _only_consumer(tensor: Any, edit: GraphEdit, counts_as_one: frozenset[str] = frozenset()) -> Any:
    """Return the one operation that uses a tensor, and the index of its input; None when there are several."""
    users = [(op, i) for op, i in edit.consumers(tensor) if op.type not in _WATCHERS]
    if len(users) == 1 or (users and all(op.name in counts_as_one for op, _ in users)):
        return users[0]
    return None


def activation_after(tensor: Any, edit: GraphEdit) -> Any:
    """Return the result of the activation that is fused to what makes a tensor; the tensor itself without one."""
    only = _only_consumer(tensor, edit)
    return only[0].outputs[0] if only is not None and only[0].type in _ACTIVATIONS else tensor


def _add_between(found: Layers, norms: dict[str, BatchNorm], edit: GraphEdit) -> None:
    """Find the operations that are reached from a layer and lead to another one."""
    taken: set[str] = set().union(*(layer.operations for layer in (*found.layers, *found.left_out)))
    behind = edit.reached_from(layer.kernel.operation.outputs[0] for layer in found.layers)
    before = edit.needed_for(layer.kernel.operation.inputs[layer.data] for layer in found.layers)
    inside = behind & before
    for norm in norms.values():
        if norm.output.name in inside and norm.output.op.name not in taken:
            found.norms.append(norm)
            taken.add(activation_after(norm.output, edit).op.name)
        taken |= norm.inner
    taken |= _inside_dropouts(edit)
    for op in edit.operations:
        if op.type not in _BETWEEN or op.name in taken:
            continue
        result = op.outputs[0]
        if result.name in inside and result.dtype == tf.float32:
            found.between.append(op)
            taken.add(activation_after(result, edit).op.name)


def _inside_dropouts(edit: GraphEdit) -> set[str]:
    """Names of the operations that dropouts consist of."""
    found: set[str] = set()
    for op in edit.operations:
        source = dropout_source(op) if op.type in ("SelectV2", "Select", "Mul") else None
        if source is not None:
            found.add(op.name)
            found |= {t.op.name for t in op.inputs if t.op.type in ("Mul", "RealDiv") and t.name != source.name}
    return found


def source_of(tensor: Any) -> Any:
    """Return the tensor that the values of a tensor were computed as, before they were only moved or dropped."""
    while True:
        op = tensor.op
        if op.type in _MOVES:
            tensor = op.inputs[_MOVES[op.type]]
            continue
        dropped = dropout_source(op)
        if dropped is None:
            return tensor
        tensor = dropped


def dropout_source(op: Any) -> Any:
    """Return what a dropout takes its values from, None when the operation is not the last one of a dropout."""
    if op.type in ("SelectV2", "Select"):
        condition, kept = op.inputs[0], op.inputs[1]
        return _undropped(kept) if _is_random(condition) else None
    if op.type == "Mul":
        for kept, mask in (op.inputs, tuple(reversed(op.inputs))):
            if _is_random(mask):
                return _undropped(kept)
    return None


def _undropped(kept: Any) -> Any:
    """Look through the scaling by the probability to stay."""
    if kept.op.type == "Mul":
        for value, factor in (kept.op.inputs, tuple(reversed(kept.op.inputs))):
            if factor.shape.rank == 0:
                return value
    if kept.op.type == "RealDiv" and kept.op.inputs[1].shape.rank == 0:
        return kept.op.inputs[0]
    return kept


def _is_random(tensor: Any, depth: int = 8) -> bool:
    """Whether a tensor is made of random numbers, by few and simple steps."""
    op = tensor.op
    if op.type in _RANDOM:
        return True
    if depth == 0 or op.type not in ("GreaterEqual", "Cast", "Floor", "AddV2", "Add", "Mul", "Sub", "Identity"):
        return False
    return any(_is_random(t, depth - 1) for t in op.inputs)
