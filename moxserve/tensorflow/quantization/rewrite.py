"""The rewriting of one graph for quantization: batch norms folded, kernels and activations put on their grids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.variables import TowerContext
from moxserve.tensorflow.graph_edit import GraphEdit
from moxserve.tensorflow.quantization.batch_norm import BatchNorm, is_frozen_update
from moxserve.tensorflow.quantization.layers import (
    FIXED_RANGES,
    SAME_RANGE,
    Layer,
    Layers,
    activation_after,
    find_layers,
    source_of,
)
from moxserve.tensorflow.quantization.options import Quantization
from moxserve.tensorflow.quantization.ranges import Range, is_transposed, quantize_constant, quantize_kernel

__all__ = ["Rewritten", "rewrite"]


@dataclass
class Rewritten:
    """What was done to a graph.

    Attributes:
        kernels: names of the kernels on a grid.
        ranges: names of the ranges of activations.
        folded: how many batch norms became part of a kernel.
        left_out: names of the kernels that were excluded.
    """

    kernels: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    folded: int = 0
    left_out: list[str] = field(default_factory=list)


def rewrite(edit: GraphEdit, options: Quantization, training: bool) -> Rewritten:
    """Quantize what `model_fn` has built.

    Args:
        edit: the graph.
        options: how.
        training: whether batch norms are to be frozen and ranges learned; else ranges are only read.

    Raises:
        ModelSpecError: the model has nothing to quantize, or a batch norm without moving averages.
    """
    found = find_layers(edit, options.exclude)
    if not found.layers:
        left = ", ".join(repr(layer.name) for layer in found.left_out)
        raise ModelSpecError(
            "quantization: model_fn has no float32 convolution or matrix product of its inputs with a variable"
            + (f"; exclude leaves out {left}" if left else ""),
            hint="exclude less" if left else "leave quantization out",
        )
    if training:
        _freeze(found, edit)
    report = Rewritten(left_out=[layer.name for layer in found.left_out])
    grid = _Grid(edit)
    # Batch norms first: where values are put on a grid is decided on the graph that is left.
    for layer in found.layers:
        report.folded += layer.norm is not None
        report.kernels.append(layer.name)
        _quantize_layer(layer, edit, options, training)
    found.between = _in_order(found, edit)
    for layer in found.layers:
        grid.add_layer(layer)
    for operation in found.between:
        grid.add_between(operation)
    grid.connect_shared(found.between)
    report.ranges = grid.quantize(training, options.range_decay)
    return report


def _freeze(found: Layers, edit: GraphEdit) -> None:
    """Take the updates of folded batch norms' averages out of the step."""
    norms = [*(layer.norm for layer in found.layers if layer.norm is not None), *found.norms]
    averages = [average for norm in norms if norm.uses_batch(edit) for average in norm.moving_variables(edit)]
    frozen = {variable.handle.op.name for parts in averages for variable in parts}
    updates = tf1.get_collection_ref(tf1.GraphKeys.UPDATE_OPS)
    updates[:] = [item for item in updates if not is_frozen_update(item, frozen, edit)]
    context = TowerContext.current()
    if context is not None:
        context.frozen |= frozen


def _quantize_layer(layer: Layer, edit: GraphEdit, options: Quantization, training: bool) -> None:
    """Put the kernel on its grid, multiplied by its batch norm's factor, and add what is left of the norm as a bias."""
    operation, index = layer.kernel.operation, layer.kernel.index
    kernel = operation.inputs[index]
    with tf1.name_scope(f"quantization/{layer.name}/"):
        scale = shift = None
        if layer.norm is not None:
            scale, shift = layer.norm.scale_and_shift(edit)
            kernel = kernel * _along_outputs(scale, kernel, operation)
        edit.connect(operation, index, quantize_kernel(kernel, operation, options, training))
        if layer.norm is None:
            return
        bias = shift if layer.bias is None else shift + layer.bias * scale
        data_format = "NCHW" if layer.norm.data_format == "NCHW" else None
        result = tf.nn.bias_add(operation.outputs[0], bias, data_format=data_format)
    edit.replace(layer.norm.output, result)
    edit.adopt(result.op)
    layer.linear = result


def _along_outputs(scale: Any, kernel: Any, operation: Any) -> Any:
    """Shape a factor for each output channel so that it multiplies a kernel."""
    if operation.type == "DepthwiseConv2dNative":
        return tf.reshape(scale, [1, 1, *kernel.shape.as_list()[2:]])
    if operation.type == "Conv2DBackpropInput" or is_transposed(operation):
        return scale[:, None]
    return scale


def _in_order(found: Layers, edit: GraphEdit) -> list[Any]:
    """Return the operations between layers, those that spell batch norms out among them."""
    positions = {op.name: position for position, op in enumerate(edit.operations)}
    parts = [(positions[op.name], [op]) for op in found.between]
    parts += [(positions[norm.output.op.name], _spell_out(norm, edit)) for norm in found.norms]
    return [op for _, operations in sorted(parts, key=lambda part: part[0]) for op in operations]


def _spell_out(norm: BatchNorm, edit: GraphEdit) -> list[Any]:
    """Make a batch norm that no kernel takes a product and a sum; gives the two operations."""
    with tf1.name_scope(f"quantization/{norm.output.op.name}/"):
        scale, shift = norm.scale_and_shift(edit)
        if norm.data_format == "NCHW":
            rest = [1] * (norm.data.shape.rank - 2)
            scale, shift = (tf.reshape(vector, [-1, *rest]) for vector in (scale, shift))
        product = norm.data * scale
        total = product + shift
    edit.replace(norm.output, total)
    for operation in (product.op, total.op):
        edit.adopt(operation)
    return [product.op, total.op]


class _Grid:
    """The tensors that are put on a grid, each with its range."""

    def __init__(self, edit: GraphEdit) -> None:
        self._edit = edit
        self._ranges: dict[str, Range] = {}  # by tensor
        self._names: set[str] = set()
        self._constants: list[tuple[Any, int]] = []

    def add_layer(self, layer: Layer) -> None:
        """Add a layer's input and result."""
        self._add(source_of(layer.kernel.operation.inputs[layer.data]), f"{layer.name}/input")
        self._add(activation_after(layer.linear, self._edit), f"{layer.name}/output")

    def add_between(self, operation: Any) -> None:
        """Add the operands and the result of an operation between layers."""
        operands = []
        for index, tensor in enumerate(operation.inputs):
            if tensor.dtype != tf.float32:
                continue
            if self._edit.depends_on_data(tensor):
                operands.append(source_of(tensor))
            else:
                self._constants.append((operation, index))
        name = f"{self._name_of(operands)}/{operation.type.lower()}"
        for index, tensor in enumerate(operands):
            self._add(tensor, f"{name}/input_{index}")
        self._add(activation_after(operation.outputs[0], self._edit), name, FIXED_RANGES.get(operation.type))

    def _name_of(self, operands: list[Any]) -> str:
        """Name an operation after what it works on, which does not depend on what else a mode builds."""
        known = [self._ranges[t.name].name for t in operands if t.name in self._ranges]
        return min(known, key=lambda name: (name.count("/"), name)) if known else "between"

    def _add(self, tensor: Any, name: str, fixed: tuple[float, float] | None = None) -> None:
        if tensor.name in self._ranges:
            return
        unique, count = name, 1
        while unique in self._names:
            unique, count = f"{name}_{count}", count + 1
        self._names.add(unique)
        self._ranges[tensor.name] = Range(unique, fixed, [tensor])

    def connect_shared(self, operations: list[Any]) -> None:
        """Give the operands and the result of operations that demand it one range."""
        for operation in operations:
            if operation.type not in SAME_RANGE:
                continue
            tensors = [source_of(t) for t in operation.inputs if t.dtype == tf.float32]
            tensors.append(activation_after(operation.outputs[0], self._edit))
            found = [self._ranges[t.name] for t in tensors if t.name in self._ranges]
            for other in found[1:]:
                self._merge(found[0], other)

    def _merge(self, into: Range, other: Range) -> None:
        if into is other or into.fixed is not None or other.fixed is not None:
            return
        into.tensors += other.tensors
        for tensor in other.tensors:
            self._ranges[tensor.name] = into

    def quantize(self, training: bool, decay: float) -> list[str]:
        """Put everything on its grid; gives the names of the ranges."""
        unique = {id(found): found for found in self._ranges.values()}
        for found in unique.values():
            for tensor, quantized in zip(found.tensors, found.quantize(training, decay), strict=True):
                self._edit.replace(tensor, quantized)
        for operation, index in self._constants:
            with tf1.name_scope(f"quantization/{operation.name}/"):
                self._edit.connect(operation, index, quantize_constant(operation.inputs[index]))
        return [found.name for found in unique.values()]
