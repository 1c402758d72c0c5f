"""TFLite: `model.tflite` by TensorFlow's converter, in float32, float16, with dynamic ranges, or in int8.

int8 models take and give float32. Ranges are the extremes over the calibration rows, or what training learned. A model
is calibrated once and then quantized as often as the search for what must stay in floating point needs it. The file
tells its signature twice: to LiteRT, and, in the metadata that TensorFlow Serving reads, to servers.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import ExportError, MissingExtraError, first_line
from moxserve.export.variants.exclusion import choose, no_rows, nothing_left
from moxserve.export.variants.feeds import Call, batch_size, batches
from moxserve.export.variants.learned import read_frozen, refuse_floating, with_ranges
from moxserve.export.variants.quality import matching
from moxserve.export.variants.tflite_model import Operation, final_operations, read_operations, with_signature
from moxserve.export.variants.trial import try_out
from moxserve.export.variants.work import Built, Work
from moxserve.types import node_name

__all__ = ["convert"]

_FILE = "model.tflite"
# The server computes these itself; the Python packages of the interpreter lack them.
_PARSERS = frozenset(("ParseExample", "ParseExampleV2"))
# Their int8 forms have 256 steps between 0 and 1: no small probability survives that.
_LAST_IN_FLOAT = frozenset(("SOFTMAX", "LOGISTIC"))
_WEIGHTED = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL"))
# What may be fused to a product.
_FUSED = frozenset(("Identity", "Reshape", "Squeeze", "BiasAdd", "Add", "AddV2", "Relu", "Relu6"))
_PRODUCTS = ("Conv", "DepthwiseConv", "MatMul", "BatchMatMul", "Einsum")
_CASTS = frozenset(("QUANTIZE", "DEQUANTIZE"))
_LISTS = "Lowering tensor list ops is failed"
_UNSUPPORTED = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")
# In the list of details: the operation, and the element type that it begins with.
_FIRST_TYPE = re.compile(r"tf\.(\w+)\(tensor<(?:[\d?*]+x)*(\w+)>")


@dataclass
class _Made:
    """A TFLite model, and what is to be told of how it was made."""

    model: bytes
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert(work: Work) -> Built:
    """Make the variant; see `Converter`.

    Raises:
        MissingExtraError: TensorFlow or flatbuffers is not installed.
        ExportError: an operation has no TFLite form, or int8 has no rows to find ranges with or loses too much.
        UsageError: a pattern of operations to exclude matches none.
    """
    try:
        from tensorflow.lite.tools import flatbuffer_utils  # noqa: F401 - here to say what is missing
    except ImportError as error:
        raise MissingExtraError(error.name or "tensorflow", "export", "converting to TFLite") from None
    made = _int8(work) if work.target.precision == "int8" else _float(work)
    model, names = with_signature(made.model, work.signature)
    file.write(os.path.join(work.directory, _FILE), model, binary=True)
    try_out(work)
    operations = Counter(operation.kind for operation in read_operations(model))
    return Built(_FILE, names, tuple(made.notes), {"operations": dict(sorted(operations.items())), **made.details})


@contextmanager
def _converter(folder: str, work: Work) -> Iterator[Any]:
    """Give TensorFlow's converter; in graph mode, which the process may be in, it would lose the signature."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    with context.eager_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the end of the interpreter that it calibrates with
        yield tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[work.signature.name])


def _float(work: Work) -> _Made:
    """Convert to float32 or float16, or with int8 weights whose inputs are quantized while the model runs."""
    import tensorflow as tf

    refuse_floating(work)
    with _converter(work.model, work) as converter:
        if work.target.precision in ("float16", "dynamic"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if work.target.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        converter.allow_custom_ops = bool(_PARSERS & {node.op for node in read_frozen(work).node})
        made = _Made(_run(converter))
    if work.target.precision == "dynamic" and not any(operation.int8 for operation in read_operations(made.model)):
        made.notes.append("nothing is quantized: TFLite leaves weights of fewer than 1024 elements as they are")
    return made


def _run(converter: Any) -> bytes:
    """Convert.

    Raises:
        ExportError: an operation has no TFLite form; lists them all.
    """
    from tensorflow.lite.python.convert import ConverterError

    try:
        return bytes(converter.convert())
    except ConverterError as error:
        if _LISTS in str(error):
            raise ExportError(
                "TFLite has no loops over lists of a length that varies, such as LSTM and GRU over any number of steps",
                hint="give the model a fixed number of steps, or take ONNX, OpenVINO or a frozen graph",
            ) from error
        missing = _missing(str(error))
        if not missing:
            raise ExportError(f"TensorFlow cannot convert the graph to TFLite: {first_line(error)}") from error
        raise ExportError(
            f"TFLite has no {', '.join(missing)}",
            hint="the SavedModel, ONNX or OpenVINO may have them; operations of TensorFlow inside TFLite "
            "(SELECT_TF_OPS) are not offered, since the server's interpreter (ai-edge-litert) cannot run them",
        ) from error
    except ValueError as error:
        # Of the calibration: the interpreter ran the graph and failed.
        raise ExportError(f"TensorFlow cannot convert the graph to TFLite: {first_line(error)}") from error


def _missing(message: str) -> list[str]:
    """Return the operations that the converter found no form of, with the element type where that is in the way."""
    types = dict(_FIRST_TYPE.findall(message))
    names = sorted(set(_UNSUPPORTED.findall(message)) - _PARSERS)
    return [name if types.get(name, "f32") == "f32" else f"{name} of {types[name]}" for name in names]


def _int8(work: Work) -> _Made:
    if work.learned:
        return _learned(work)
    if not work.calibration.count:
        raise no_rows(work)
    calibrated = _calibrated(work)
    operations = [operation for operation in read_operations(calibrated) if operation.kind not in _CASTS]
    last = set(final_operations(calibrated, _LAST_IN_FLOAT))
    graph_def = read_frozen(work)
    names = _names(operations, graph_def)
    excluded = matching(work.settings.exclude, {o.name: names[o.name] for o in operations if o.name not in last})
    labels = _labels(names, {node.name for node in graph_def.node if node.op.startswith(_PRODUCTS)})
    left = {labels[o.name]: o for o in operations if o.name not in excluded and o.name not in last}
    if not any(o.kind in _WEIGHTED for o in left.values()):
        raise nothing_left(excluded)

    def make(kept: Collection[str]) -> bytes:
        return _quantized(calibrated, work, [*last, *excluded, *(left[label].name for label in kept)])

    chosen = choose(work, list(left), make, lambda model: _opened(model, work))
    reasons = {
        **{labels[name]: "an output of probabilities" for name in last},
        **{labels[name]: f"excluded by {pattern!r}" for name, pattern in excluded.items()},
        **dict.fromkeys(chosen.kept, "costs accuracy"),
    }
    weighted = [label for label, o in left.items() if o.kind in _WEIGHTED and label not in chosen.kept]
    details = _int8_details(work, weighted, reasons, chosen.details)
    notes = list(chosen.notes)
    if work.settings.method != "minmax":
        notes.append(f"TFLite's ranges are the extremes: it has no calibration by {work.settings.method}")
    return _Made(chosen.model, details, notes)


def _int8_details(
    work: Work, quantized: Sequence[str], in_float: Mapping[str, str], search: Mapping[str, Any]
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "calibration": {"method": "minmax", "rows": work.calibration.count, "per_channel": work.settings.per_channel},
        "quantized": list(quantized),
        "float": [{"operation": label, "reason": reason} for label, reason in in_float.items()],
    }
    return {**details, "search": search} if search else details


def _names(operations: Sequence[Operation], graph_def: Any) -> dict[str, list[str]]:
    """Return what the user may know each operation by.

    Of what was fused into one that gives an output of the model, the converter tells the output's name alone; the
    others are looked for in the graph, from there back to the weights.
    """
    nodes = {node.name: node for node in graph_def.node}
    found = {}
    for operation in operations:
        names = operation.parts
        if operation.kind in _WEIGHTED and not any(_is_product(nodes, name) for name in names):
            names = [*names, *_fused_before(nodes, names[0])]
        found[operation.name] = names
    return found


def _is_product(nodes: Mapping[str, Any], name: str) -> bool:
    return name in nodes and nodes[name].op.startswith(_PRODUCTS)


def _fused_before(nodes: Mapping[str, Any], name: str) -> list[str]:
    """Return the operations from one back to the product before it; none when something else lies between."""
    found: list[str] = []
    while name in nodes and nodes[name].op in _FUSED:
        node = nodes[name]
        found.append(name)
        sources = {node_name(text) for text in node.input if not text.startswith("^")}
        varying = [source for source in sources if source in nodes and nodes[source].op != "Const"]
        if len(varying) != 1:
            return []
        name = varying[0]
    return [*found[1:], name] if _is_product(nodes, name) else []


def _labels(names: Mapping[str, Sequence[str]], heavy: Collection[str]) -> dict[str, str]:
    """Return what the user is told of each operation: of what was fused into it, the one with the weights."""
    wanted = {own: next((name for name in known if name in heavy), known[0]) for own, known in names.items()}
    taken = Counter(wanted.values())
    return {own: label if taken[label] == 1 else own for own, label in wanted.items()}


def _calibrated(work: Work) -> bytes:
    """Return the float model with the range of each tensor in it."""
    import tensorflow as tf

    size = batch_size(work.signature) or 1

    def rows() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for batch in batches(work.calibration, size):
            yield work.signature.name, batch

    with _converter(work.model, work) as converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = rows
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        # As TensorFlow's own quantization debugger does it, to quantize one calibrated model several times.
        converter._experimental_calibrate_only = True
        return _run(converter)


def _quantized(calibrated: bytes, work: Work, in_float: Sequence[str]) -> bytes:
    from tensorflow.lite.python.convert import mlir_quantize

    whole = not work.settings.per_channel
    return bytes(
        mlir_quantize(
            calibrated,
            disable_per_channel=whole,
            disable_per_channel_for_dense_layers=whole,
            denylisted_nodes=list(in_float) or None,
        )
    )


def _learned(work: Work) -> _Made:
    """Convert a graph with fake quantization: its ranges become those of the int8 model."""
    import tensorflow as tf

    with (
        with_ranges(work, plain_softmax=True) as (folder, excluded),
        _converter(folder, work) as converter,
    ):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        model = _run(converter)
    graph_def = read_frozen(work)
    heavy = [operation for operation in read_operations(model) if operation.kind in _WEIGHTED]
    labels = _labels(_names(heavy, graph_def), {node.name for node in graph_def.node if node.op.startswith(_PRODUCTS)})
    reasons = {name: f"excluded by {pattern!r}" for name, pattern in excluded.items()}
    left = [labels[o.name] for o in heavy if not o.int8 and labels[o.name] not in excluded]
    reasons |= dict.fromkeys(left, "not all that it reads and gives has a range")
    details: dict[str, Any] = {
        "calibration": {"method": "learned"},
        "quantized": [labels[o.name] for o in heavy if o.int8],
        "float": [{"operation": name, "reason": reason} for name, reason in reasons.items()],
    }
    notes = [f"{len(left)} operations stay in float32: {', '.join(left)}"] if left else []
    return _Made(model, details, notes)


@contextmanager
def _file_of(model: bytes) -> Iterator[str]:
    with file.scratch_directory() as folder:
        path = os.path.join(folder, _FILE)
        with open(path, "wb") as f:
            f.write(model)
        yield path


def _opened(model: bytes, work: Work) -> Call:
    """Load a model as the server does."""
    from moxserve.serving.backends.tflite import TfliteGraph

    model, names = with_signature(model, work.signature)
    with _file_of(model) as path:
        graph = TfliteGraph(path)

    def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = {names.inputs[alias]: array for alias, array in inputs.items() if alias in names.inputs}
        return dict(zip(names.outputs, graph.run(feeds, list(names.outputs.values())), strict=True))

    return call
