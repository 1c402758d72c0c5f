"""int8 with learned ranges: weights and biases as integers around the activations that are quantized already.

tf2onnx turns the marked fake quantization of activations into QuantizeLinear and DequantizeLinear and leaves weights in
float32; only when the weights come out of a DequantizeLinear, too, does ONNX Runtime fuse an integer kernel. So the
weights, which training has put on a grid, are written as that grid's whole numbers, and biases as int32 of the scale
`input scale * weight scale`, which is what the kernels add.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from moxserve.export.variants.onnx.learned import Grid, LearnedWeights
from moxserve.export.variants.onnx.model import initializers, producers, readers_of, replace_nodes

__all__ = ["emit_weights", "learned_operations", "merge_biases"]

# Operations that integer kernels can take the place of.
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Between a DequantizeLinear and its reader, these leave the numbers on their grid.
_MOVING = ("Transpose", "MaxPool", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity")
_INT32 = 2**31 - 1


def merge_biases(model: Any) -> None:
    """Turn a matrix product and the bias that is added to it into one Gemm, which integer kernels know."""
    inferred = onnx.shape_inference.infer_shapes(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input)
        if value.type.tensor_type.HasField("shape")
    }
    constants, readers = initializers(model), readers_of(model)
    made_by, results = producers(model), {value.name for value in model.graph.output}
    gone = set()
    for node in model.graph.node:
        bias, product = _bias_and_product(node, constants, made_by)
        if product is None:
            continue
        alone = len(readers[product.output[0]]) == 1 and product.output[0] not in results
        fits = list(constants[product.input[1]].dims)[1:] == list(constants[bias].dims)
        if alone and fits and ranks.get(product.input[0]) == 2:
            gone.add(product.name)
            node.op_type, node.name = "Gemm", product.name
            node.input[:] = [product.input[0], product.input[1], bias]
    replace_nodes(model, [n for n in model.graph.node if n.op_type == "Gemm" or n.name not in gone])


def _bias_and_product(node: Any, constants: Mapping[str, Any], made_by: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the bias of an Add and the matrix product that it is added to; no product where it is something else."""
    if node.op_type != "Add" or len(node.input) != 2:
        return "", None
    bias = next((name for name in node.input if name in constants and len(constants[name].dims) == 1), "")
    product = made_by.get(next((name for name in node.input if name != bias), ""))
    if not bias or product is None or product.op_type != "MatMul" or product.input[1] not in constants:
        return "", None
    return bias, product


@dataclass(frozen=True)
class _Quantized:
    """Weights as whole numbers: `scale * (values - zero)`."""

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


def learned_operations(model: Any) -> list[str]:
    """Return the names of the operations whose weights integer kernels can take, in order."""
    constants = initializers(model)
    return [n.name for n in model.graph.node if n.op_type in _WEIGHTED and n.input[1] in constants and _plain(n)]


def _plain(node: Any) -> bool:
    """Whether a Gemm is nothing but a product and a sum."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return node.op_type != "Gemm" or (values.get("alpha", 1.0), values.get("beta", 1.0), values.get("transA", 0)) == (
        1.0,
        1.0,
        0,
    )


def _output_axis(node: Any) -> int:
    """Return the axis of the weights that holds the output channels."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def emit_weights(
    model: Any, learned: Sequence[LearnedWeights], excluded: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Write learned weights and their biases as integers.

    Args:
        model: with quantized activations; is changed.
        learned: the weights of the graph that it was made of, with their grids.
        excluded: operations that stay in float32.

    Returns:
        The names of the operations that are int8 now, and of the others, each with the reason.
    """
    by_print: dict[bytes, Grid] = {_print_of(weights.values): weights.grid for weights in learned}
    constants, made_by = initializers(model), producers(model)
    emitter = _Emitter(model, constants, made_by)
    done: list[str] = []
    left: dict[str, str] = {}
    for name in learned_operations(model):
        node = next(n for n in model.graph.node if n.name == name)
        weights = numpy_helper.to_array(constants[node.input[1]])
        grid = by_print.get(_print_of(weights))
        source = emitter.input_scale(node.input[0])
        if name in excluded:
            continue
        if grid is None:
            left[name] = "its weights were not fake-quantized in training"
        elif source is None:
            left[name] = "its input was not fake-quantized in training"
        elif (quantized := _quantized(weights, grid, _output_axis(node))) is None:
            left[name] = "its weights were not fake-quantized along their output channels"
        else:
            emitter.emit(node, quantized, source)
            done.append(name)
    emitter.finish()
    return done, left


def _print_of(values: np.ndarray) -> bytes:
    """Return what stays the same when weights are transposed or reshaped."""
    return np.sort(values.astype(np.float32), axis=None).tobytes()


def _quantized(weights: np.ndarray, grid: Grid, axis: int) -> _Quantized | None:
    scale, zero = np.atleast_1d(grid.scale).astype(np.float64), np.atleast_1d(grid.zero) - 128
    if scale.size not in (1, weights.shape[axis]) or not (grid.most == 255 and np.all(np.abs(zero) <= 128)):
        return None
    shape = [1] * weights.ndim
    shape[axis] = -1
    values = np.round(weights / scale.reshape(shape)) + zero.reshape(shape)
    values = np.clip(values, grid.least - 128, grid.most - 128).astype(np.int8)
    if scale.size == 1:
        scale, zero = scale[0], zero[0]
    return _Quantized(values, np.asarray(scale, np.float32), np.asarray(zero, np.int8))


class _Emitter:
    """Adds constants and DequantizeLinear to a model."""

    def __init__(self, model: Any, constants: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        self._model = model
        self._constants = constants
        self._made_by = made_by
        self._added: list[Any] = []  # nodes without inputs but constants: they go first
        self._pairs: dict[str, list[Any]] = {}  # tensor -> QuantizeLinear and DequantizeLinear that follow it

    def input_scale(self, tensor: str) -> float | None:
        """Return the scale of a tensor that is quantized; None for others."""
        node = self._made_by.get(tensor)
        while node is not None and node.op_type in _MOVING:
            node = self._made_by.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return float(numpy_helper.to_array(self._constants[node.input[1]]))

    def emit(self, node: Any, weights: _Quantized, input_scale: float) -> None:
        """Take an operation's weights and bias from integers."""
        axis = _output_axis(node)
        bias = node.input[2] if len(node.input) > 2 else ""
        node.input[0] = self._requantized(node.input[0])
        node.input[1] = self._dequantized(f"{node.name}/weights", weights, axis)
        if bias in self._constants:
            scale = weights.scale.astype(np.float64) * input_scale
            whole = np.round(numpy_helper.to_array(self._constants[bias]).astype(np.float64) / scale)
            values = np.clip(whole, -_INT32, _INT32).astype(np.int32)
            zero = np.zeros(scale.shape, np.int32)
            node.input[2] = self._dequantized(
                f"{node.name}/bias", _Quantized(values, scale.astype(np.float32), zero), 0
            )

    def _requantized(self, tensor: str) -> str:
        """Quantize once more what was moved after it was dequantized, which changes no number."""
        node = self._made_by[tensor]
        if node.op_type == "DequantizeLinear":
            return tensor
        result = f"{tensor}/requantized"
        if tensor not in self._pairs:
            origin = node
            while origin.op_type != "DequantizeLinear":
                origin = self._made_by[origin.input[0]]
            whole = f"{tensor}/whole"
            parameters = list(origin.input[1:])
            self._pairs[tensor] = [
                helper.make_node("QuantizeLinear", [tensor, *parameters], [whole], name=f"{tensor}/quantize"),
                helper.make_node("DequantizeLinear", [whole, *parameters], [result], name=f"{tensor}/dequantize"),
            ]
        return result

    def _dequantized(self, name: str, weights: _Quantized, axis: int) -> str:
        parts = {"values": weights.values, "scale": weights.scale, "zero": weights.zero}
        names = [f"{name}/{part}" for part in parts]
        self._model.graph.initializer.extend(
            numpy_helper.from_array(array, full) for full, array in zip(names, parts.values(), strict=True)
        )
        attributes = {"axis": axis} if weights.scale.ndim else {}
        self._added.append(helper.make_node("DequantizeLinear", names, [name], name=f"{name}/dequantize", **attributes))
        return name

    def finish(self) -> None:
        """Put the new operations into their places, and leave out what nothing reads any more."""
        nodes = list(self._added)
        for node in self._model.graph.node:
            nodes.append(node)
            for tensor in node.output:
                nodes.extend(self._pairs.get(tensor, ()))
        replace_nodes(self._model, nodes)
