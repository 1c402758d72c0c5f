"""OpenVINO graphs: read from a SavedModel, their outputs named by alias, their operations by the original's names.

The reader moves convolutions to NCHW and thereby renames them, so an operation with weights is found again by its
weights. OpenVINO's command-line converter, which reports its use to its makers, is not used.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import ExportError
from moxserve.export.variants.work import FROZEN_GRAPH
from moxserve.types import Signature, TensorSpec, node_name

__all__ = ["Doubtful", "has_attention", "known_names", "quantized_operations", "read_graph"]

_NAME = "moxserve_name"
_MISSING = re.compile(r"No conversion rule found for operations?: ([\w, ]+)")
_NOISE = ("Exception from", "Check '", "FrontEnd API failed", "Summary:")
_CONVOLUTIONS = frozenset((
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"
))  # fmt: skip
_WEIGHTED = _CONVOLUTIONS | {"MatMul"}
# They hand values on as they are, or are swallowed by what is before them: int8 costs nothing there.
_PASSING = frozenset((
    "Result", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "MaxPool", "Concat", "Split", "VariadicSplit", "Convert",
    "FakeQuantize", "StridedSlice", "Gather", "Relu", "Clamp",
))  # fmt: skip
# Element count, sum and exclusive or of the bits of each element: no reordering changes them.
_Fingerprint = tuple[int, int, int]


def read_graph(folder: str, signature: Signature) -> Any:
    """Read a frozen graph.

    Args:
        folder: a SavedModel without variables, and `frozen_graph.pb`.
        signature: the one that it has.

    Returns:
        An `openvino.Model` whose inputs and outputs are called by the aliases.

    Raises:
        ExportError: OpenVINO has no form of an operation; lists them.
    """
    from openvino import frontend
    from openvino._offline_transformations import apply_moc_transformations, compress_quantize_weights_transformation

    failures = (
        frontend.OpConversionFailure, frontend.OpValidationFailure, frontend.GeneralFailure,
        frontend.NotImplementedFailure, frontend.InitializationFailure, RuntimeError,
    )  # fmt: skip
    reader = frontend.FrontEndManager().load_by_framework("tf")
    try:
        model = reader.convert(reader.load(folder))
    except failures as error:
        raise _refusal(str(error)) from error
    _name_weighted(model, os.path.join(folder, FROZEN_GRAPH))
    # What OpenVINO's own converter does after reading.
    apply_moc_transformations(model, cf=False, smart_reshape=True)
    compress_quantize_weights_transformation(model)
    _name_outputs(model, signature)
    return model


def _refusal(message: str) -> ExportError:
    missing = _MISSING.search(message)
    if missing:
        return ExportError(
            f"OpenVINO has no {missing.group(1).strip()}", hint="the SavedModel, ONNX or TFLite may have it"
        )
    lines = [line.strip() for line in message.splitlines()]
    told = [line for line in lines if line and not line.startswith(_NOISE)]
    return ExportError(f"OpenVINO cannot read the graph: {told[0] if told else message.strip()}")


# --- outputs


def _name_outputs(model: Any, signature: Signature) -> None:
    """Give each output a tensor of its own, called by its alias and nothing else.

    Raises:
        ExportError: an output of the signature is not in the graph.
    """
    from openvino import opset13

    aliases = [_alias(result, signature) for result in model.get_results()]
    lost = sorted(set(signature.outputs) - set(aliases))
    if lost:
        raise ExportError(f"OpenVINO's reader lost the output {lost[0]!r} of the graph")
    old = list(model.get_results())
    used = Counter(_place(result.input_value(0)) for result in old)
    for alias, result in zip(aliases, old, strict=True):
        source = result.input_value(0)
        if used[_place(source)] > 1 or source.get_node().get_type_name() == "Parameter":
            source = _copy(source)
        source.get_tensor().set_names({alias})
        # The old one would remember its names.
        model.remove_result(result)
        model.add_results([opset13.result(source, name=f"{alias}/result")])
    inputs = set(signature.inputs)
    for parameter in model.get_parameters():
        names = parameter.output(0).get_names() & inputs
        if names:
            parameter.output(0).get_tensor().set_names(names)


def _copy(source: Any) -> Any:
    """Return a tensor with the same values and a name of its own."""
    from openvino import opset13

    if source.get_node().get_type_name() == "Parameter" and source.get_partial_shape().rank.get_max_length() > 0:
        # Rolled by nothing: what only hands an input on shares its memory, and answers with an earlier request's.
        return opset13.roll(source, np.array([0]), np.array([0])).output(0)
    # Gone when the model is compiled; its name is not.
    return opset13.convert(source, source.get_element_type().get_type_name()).output(0)


def _place(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _alias(result: Any, signature: Signature) -> str:
    name = result.get_friendly_name()
    if name in signature.outputs:
        return str(name)

    def same(spec: TensorSpec) -> bool:
        return spec.tensor.removesuffix(":0") == name.removesuffix(":0")

    found = [alias for alias, spec in signature.outputs.items() if same(spec)]
    known = result.input_value(0).get_names() & set(signature.outputs)
    return found[0] if found else min(known, default="")


# --- names of operations


def _name_weighted(model: Any, path: str) -> None:
    """Note in each operation with weights which ones of the original graph have the same."""
    weighted = [(node, weights) for node in model.get_ordered_ops() if (weights := _weights(node)) is not None]
    sizes = {array.size for _, array in weighted}
    known: dict[_Fingerprint, set[str]] = defaultdict(set)
    for name, array in _original_weights(path):
        if array.size in sizes:
            known[_fingerprint(array)].add(name)
    for node, array in weighted:
        names = known.get(_fingerprint(array))
        if names:
            node.get_rt_info()[_NAME] = "\n".join(sorted(names))


def _weights(node: Any) -> np.ndarray | None:
    """Return the constant that an operation multiplies with; None when there is none."""
    if node.get_type_name() not in _WEIGHTED:
        return None
    for source in node.input_values():
        at = source.get_node()
        while at.get_type_name() != "Constant" and at.get_input_size():
            if at.get_type_name() not in ("FakeQuantize", "Transpose", "Reshape", "Unsqueeze", "Convert"):
                break
            at = at.input_value(0).get_node()
        if at.get_type_name() == "Constant":
            return np.asarray(at.data)
    return None


def _original_weights(path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each operation of the frozen graph that reads a constant with two dimensions or more, and the constant."""
    import tensorflow as tf
    from tensorflow.core.framework import graph_pb2

    nodes = {node.name: node for node in graph_pb2.GraphDef.FromString(file.read(path, binary=True)).node}
    for node in nodes.values():
        if not node.op.startswith(("Conv", "DepthwiseConv", "MatMul", "BatchMatMul", "Einsum")):
            continue
        for text in node.input:
            at = nodes[node_name(text)]
            while at.op in ("Identity", "Reshape", "Transpose") or at.op.startswith("FakeQuant"):
                at = nodes[node_name(at.input[0])]
            if at.op == "Const" and len(at.attr["value"].tensor.tensor_shape.dim) >= 2:
                yield node.name, tf.make_ndarray(at.attr["value"].tensor)


def _fingerprint(array: np.ndarray) -> _Fingerprint:
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    return array.size, int(bits.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(bits, initial=0))


def known_names(model: Any) -> dict[str, set[str]]:
    """Return the operations of a model by their own names, each with its names in the original graph."""
    found = {}
    for node in model.get_ordered_ops():
        info = node.get_rt_info()
        # OpenVINO copies such notes to what it makes of an operation, such as the sum of a folded batch norm.
        weighted = node.get_type_name() in _WEIGHTED and _NAME in info
        names = info[_NAME].astype(str).split("\n") if weighted else ()
        found[node.get_friendly_name()] = set(names)
    return found


# --- what is quantized


def quantized_operations(model: Any) -> list[str]:
    """Return the operations of a quantized model that compute with int8, in order."""
    found = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in _PASSING and any(_ranged(value) for value in node.input_values()):
            found.append(node.get_friendly_name())
    return found


def _ranged(value: Any) -> bool:
    node = value.get_node()
    while node.get_type_name() in ("Transpose", "Reshape", "MaxPool", "Squeeze", "Unsqueeze", "Concat"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


@dataclass(frozen=True)
class Doubtful:
    """How small a convolution is that OpenVINO's int8 may be wrong about, in places in space: 4 for 2 x 2.

    Attributes:
        dense: of those that read all channels.
        grouped: of those in groups of channels, such as depthwise ones.
    """

    dense: int
    grouped: int

    def among(self, model: Any) -> list[str]:
        """Return the convolutions of a model that give or take so few pixels or fewer."""
        found = []
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind in _CONVOLUTIONS:
                limit = self.grouped if kind.startswith("Group") else self.dense
                shapes = (node.get_output_partial_shape(0), node.get_input_partial_shape(0))
                if any(0 < _pixels(shape) <= limit for shape in shapes):
                    found.append(node.get_friendly_name())
        return found


def _pixels(shape: Any) -> int:
    """Return how many places in space an NCHW tensor has; 0 when that varies."""
    if shape.rank.is_dynamic or any(dim.is_dynamic for dim in list(shape)[2:]):
        return 0
    return math.prod(dim.get_length() for dim in list(shape)[2:])


def has_attention(model: Any) -> bool:
    """Tell whether a matrix product of two activations is in a model, which NNCF treats otherwise."""
    return any(node.get_type_name() == "MatMul" and _weights(node) is None for node in model.get_ordered_ops())
