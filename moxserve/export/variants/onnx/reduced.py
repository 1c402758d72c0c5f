"""float16, and weights of 8 bits with activations quantized while it runs: both without calibration.

float16 halves the file; the CPU kernels of ONNX Runtime compute most of it in float32 all the same, so it gains no time
there. Dynamic quantization gains where weights dominate (large matrix products, embeddings, recurrent layers).
Convolutions stay as they are: a dynamically quantized ResNet-50 took 2 to 3 times as long as in
float32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from moxserve import file
from moxserve.errors import ExportError, first_line
from moxserve.export.variants.onnx.model import initializers

__all__ = ["DYNAMIC_TYPES", "dynamic_operations", "quiet", "to_dynamic", "to_float16"]

# What has a dynamic kernel, and gains. Gemm is turned into MatMul and Add.
DYNAMIC_TYPES = ("MatMul", "Gemm", "Gather", "LSTM")
_WEIGHT_INPUTS = {"MatMul": 1, "Gemm": 1, "Gather": 0, "LSTM": 1}
_HALF_MAX = 65504.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what ONNX Runtime's tools print, warn and log below errors off the terminal."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_float16(model: Any) -> tuple[Any, tuple[str, ...]]:
    """Convert weights and arithmetic to float16; inputs and outputs stay as they are.

    Args:
        model: in float32; is changed.

    Returns:
        The model and notes for the user.

    Raises:
        ExportError: ONNX Runtime's converter fails.
    """
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _unshare(model, float16.DEFAULT_OP_BLOCK_LIST)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    clipped = [t.name for t in floats if np.abs(onnx.numpy_helper.to_array(t)).max(initial=0.0) > _HALF_MAX]
    try:
        with quiet():
            wrapped = OnnxModel(float16.convert_float_to_float16(model, keep_io_types=True))
            # The casts of inputs and outputs are put at the end.
            wrapped.topological_sort()
    except Exception as error:
        raise ExportError(f"float16: {type(error).__name__}: {first_line(error)}") from error
    notes = ["ONNX Runtime computes float16 in float32 on most CPUs: it saves space, not time"]
    if clipped:
        notes.append(f"{len(clipped)} constants beyond float16's {_HALF_MAX:g} were cut off, such as {clipped[0]!r}")
    return wrapped.model, tuple(notes)


def _unshare(model: Any, types: Collection[str]) -> None:
    """Give the operations that stay in float32 constants of their own: the converter casts a shared one twice."""
    constants = initializers(model)
    seen: set[str] = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in seen and name in constants and node.op_type in types:
                own = model.graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = node.input[i] = f"{name}/{node.name}/{i}"
            seen.add(name)


def dynamic_operations(model: Any) -> list[str]:
    """Return the names of the operations that dynamic quantization takes: those with float weights in the file."""
    weights = {name for name, t in initializers(model).items() if t.data_type == onnx.TensorProto.FLOAT}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _WEIGHT_INPUTS and node.input[_WEIGHT_INPUTS[node.op_type]] in weights
    ]


def to_dynamic(model: Any, nodes: Sequence[str], per_channel: bool) -> Any:
    """Store the weights of some operations in 8 bits, their activations to be quantized while it runs.

    Args:
        model: in float32.
        nodes: names of the operations, of `DYNAMIC_TYPES`; at least one.
        per_channel: a scale for each output channel.

    Raises:
        ExportError: ONNX Runtime's quantizer fails.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with file.scratch_directory() as folder, quiet():
        source, target = Path(folder, "float.onnx"), os.path.join(folder, "dynamic.onnx")
        onnx.save(model, source)
        try:
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=list(DYNAMIC_TYPES),
                per_channel=per_channel,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(nodes),
            )
        except Exception as error:
            raise ExportError(f"dynamic quantization: {type(error).__name__}: {first_line(error)}") from error
        return onnx.load(target)
