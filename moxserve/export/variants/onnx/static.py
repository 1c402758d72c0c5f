"""int8: weights and activations quantized ahead, as QuantizeLinear and DequantizeLinear around float operations (QDQ).

ONNX Runtime fuses these into integer kernels when it loads the model; on the CPU its fast ones take activations of
uint8 and weights of int8. What is quantized is decided here, and ONNX Runtime's quantizer does it:

* operations with weights (`HEAVY`), unless excluded; transposed convolutions are none of them, as they have no integer
  kernel;
* light ones (`LIGHT`) that lie between two of them, where staying in int8 saves going to float32 and back;
* not what comes before the first weights, nor after the last: Softmax and the choice of a class stay in float32, and so
  does the result of the last matrix product. A Softmax of 8 bits would make every probability below 1/256 a zero.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from moxserve import file
from moxserve.errors import ExportError, first_line
from moxserve.export.variants.onnx.model import initializers, producers, rename_tensors, replace_nodes
from moxserve.export.variants.onnx.reduced import quiet
from moxserve.export.variants.onnx.running import QUIET

__all__ = ["HEAVY", "LIGHT", "Plan", "heavy_operations", "plan", "prepare", "quantize"]

HEAVY = ("Conv", "Gemm", "MatMul", "Gather")
# Integer kernels of their own.
_COMPUTING = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu")
# The same numbers, moved or cut off: they keep the range of their input.
_MOVING = (
    "Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Resize",
)  # fmt: skip
LIGHT = (*_COMPUTING, *_MOVING)
_FLOAT_RESULTS = ("Gemm", "MatMul")  # have integer kernels that answer in float32


def prepare(model: Any) -> Any:
    """Fuse what belongs together and infer types, so that the quantizer sees what will run.

    Args:
        model: in float32.

    Returns:
        A new model, each operation with a name of its own.

    Raises:
        ExportError: ONNX Runtime fails at it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with file.scratch_directory() as folder:
        path = os.path.join(folder, "prepared.onnx")
        options.optimized_model_filepath = path
        try:
            # A constant that two operations share could not have a scale for each.
            ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantSharing"],
            )
            prepared = onnx.shape_inference.infer_shapes(onnx.load(path))
        except Exception as error:
            raise ExportError(f"preparing int8: {type(error).__name__}: {first_line(error)}") from error
    taken: set[str] = set()
    for i, node in enumerate(prepared.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{i}"
        taken.add(node.name)
    return prepared


def heavy_operations(model: Any) -> list[str]:
    """Return the names of the operations with weights, or that multiply two activations, in order."""
    constants = initializers(model)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {name: tensor.data_type for name, tensor in constants.items()}

    def heavy(node: Any) -> bool:
        if node.op_type not in HEAVY:
            return False
        weights, moving = node.input[:2] if node.op_type == "Gather" else (node.input[1], node.input[0])
        fixed = weights in constants or node.op_type == "MatMul"  # which may also multiply two activations
        # The quantizer wants a constant to be the second.
        return fixed and types.get(weights) == onnx.TensorProto.FLOAT and moving not in constants

    return [node.name for node in model.graph.node if heavy(node)]


@dataclass(frozen=True)
class Plan:
    """Which operations are quantized.

    Attributes:
        nodes: their names, in order.
        float_results: those of them whose result stays in float32.
    """

    nodes: tuple[str, ...]
    float_results: frozenset[str]


def plan(model: Any, heavy: Collection[str]) -> Plan:
    """Decide which light operations are quantized with some heavy ones.

    Args:
        model: prepared; its nodes are sorted.
        heavy: names of the heavy operations to quantize.
    """
    constants = initializers(model).keys()
    chosen = set(heavy)
    able: set[str] = set()  # tensors that are there in int8
    light: set[str] = set()
    for node in model.graph.node:
        if node.name not in chosen:
            sources = [name for name in node.input if name and name not in constants]
            if node.op_type in _MOVING:
                sources = sources[:1]
            if node.op_type not in LIGHT or not sources or not able.issuperset(sources):
                continue
            light.add(node.name)
        able.update(node.output)
    wanted: set[str] = set()  # tensors that someone takes in int8
    float_results = set()
    for node in reversed(model.graph.node):
        takes = wanted.intersection(node.output)
        if node.name in chosen:
            wanted.update(node.input)
            if node.op_type in _FLOAT_RESULTS and not takes:
                float_results.add(node.name)
        elif node.name in light and takes:
            wanted.update(node.input)
        else:
            light.discard(node.name)
    names = [node.name for node in model.graph.node if node.name in chosen or node.name in light]
    return Plan(tuple(names), frozenset(float_results))


def quantize(model: Any, ranges: Mapping[str, tuple[float, float]], planned: Plan, per_channel: bool) -> Any:
    """Quantize some operations.

    Args:
        model: prepared; is not changed.
        ranges: of the activations, by tensor.
        planned: the operations; at least one.
        per_channel: a scale for each output channel of a weight.

    Returns:
        A new model.

    Raises:
        ExportError: ONNX Runtime's quantizer fails.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    values = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            quantizer = QDQQuantizer(
                copy,
                per_channel,
                False,
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, {n: (np.array(a), np.array(b)) for n, (a, b) in values.items()}),
                list(planned.nodes),
                [],
                [*HEAVY, *LIGHT],
                {"MatMulConstBOnly": False},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            result = quantizer.model.model
    except Exception as error:
        raise ExportError(f"int8: {type(error).__name__}: {first_line(error)}") from error
    _free_results(result, planned.float_results)
    del result.graph.value_info[:]
    return result


def _free_results(model: Any, names: Collection[str]) -> None:
    """Take the quantization off the results of some operations."""
    graph = model.graph
    made_by = producers(model)
    changes, gone = {}, set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        quantizer = made_by.get(node.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue  # of a weight
        origin = made_by.get(quantizer.input[0])
        if origin is not None and origin.name in names:
            changes[quantizer.input[0]] = node.output[0]
            gone |= {node.output[0], quantizer.output[0]}
    replace_nodes(model, [node for node in graph.node if not gone.intersection(node.output)])
    rename_tensors(graph, changes)
