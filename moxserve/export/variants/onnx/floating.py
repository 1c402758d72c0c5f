"""TensorFlow graph to ONNX in float32, by tf2onnx: what that cannot convert, it only logs, so that is looked for here.

tf2onnx writes versions 7 to 18 of ONNX's operations; `onnx.version_converter` takes the result further.
"""

from __future__ import annotations

import gc
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx

from moxserve.errors import ExportError, first_line
from moxserve.export.targets import FIRST_OPSET
from moxserve.export.variants.onnx.model import fit_signature, nodes_of
from moxserve.types import Signature

__all__ = ["convert_graph"]

_LAST_OPSET = 18  # tf2onnx's
_FAILED = re.compile(r"Failed to convert node '([^']+)'")
_OTHER_WAYS = "leave --onnx out and serve this signature as SavedModel or TFLite, or convert another: --signature KEY"
_MAX_LISTED = 12
_PASS_LEVEL = 15  # of tf2onnx's "verbose" messages
_LARGE_BYTES = 4 << 20


def convert_graph(graph_def: Any, signature: Signature, opset: int) -> Any:
    """Convert a graph to an ONNX model in float32.

    Args:
        graph_def: without variables, cut to the signature.
        signature: names the graph's tensors.
        opset: version of ONNX's operations.

    Returns:
        A ModelProto whose inputs and outputs are called by their aliases, of the signature's shapes.

    Raises:
        ExportError: ONNX, or this version of it, has no form of an operation; or there is no such version.
    """
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise ExportError(f"ONNX opset {opset}: expected {FIRST_OPSET} to {newest}", hint="--opset 17 suits most")
    known = {node.name for node in graph_def.node}
    inputs = [s.tensor for s in signature.inputs.values() if s.tensor.split(":")[0] in _reached(graph_def, signature)]
    outputs = [spec.tensor for spec in signature.outputs.values()]
    missing = sorted({name.split(":")[0] for name in (*inputs, *outputs)} - known)
    if missing:
        raise ExportError(f"the graph has no {', '.join(map(repr, missing))}, which signature {signature.name!r} names")
    model, complaints = _run_tf2onnx(graph_def, inputs, outputs, min(opset, _LAST_OPSET))
    _refuse_unsupported(model, graph_def, complaints)
    if opset > _LAST_OPSET:
        model = _upgrade(model, opset)
    fit_signature(model, signature)
    model.producer_name, model.producer_version = "moxserve", ""
    model.graph.name = signature.name
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    return model


def _reached(graph_def: Any, signature: Signature) -> set[str]:
    """Return the names of the nodes that the outputs depend on: tf2onnx knows no inputs that nothing needs."""
    nodes = {node.name: node for node in graph_def.node}
    todo = [spec.tensor.split(":")[0] for spec in signature.outputs.values()]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        todo.extend(source.lstrip("^").split(":")[0] for source in nodes[name].input)
    return seen


def _run_tf2onnx(graph_def: Any, inputs: list[str], outputs: list[str], opset: int) -> tuple[Any, list[str]]:
    import tensorflow as tf
    import tf2onnx

    with _complaints(free=graph_def.ByteSize() > _LARGE_BYTES) as complaints:
        try:
            # A copy: tf2onnx removes attributes from the nodes that it is given.
            copy = tf.compat.v1.GraphDef()
            copy.CopyFrom(graph_def)
            _substitute(copy)
            model, _ = tf2onnx.convert.from_graph_def(copy, input_names=inputs, output_names=outputs, opset=opset)
        except Exception as error:
            told = f" ({complaints[0]})" if complaints else ""
            raise ExportError(
                f"tf2onnx cannot convert the graph: {type(error).__name__}: {first_line(error)}{told}", hint=_OTHER_WAYS
            ) from error
    return model, complaints


def _substitute(graph_def: Any) -> None:
    """Write `Erfc`, which tf2onnx does not know and every GELU has, as `1 - Erf`."""
    import tensorflow as tf

    for node in [node for node in graph_def.node if node.op == "Erfc"]:
        kind = node.attr["T"].type
        inner = graph_def.node.add(name=f"{node.name}/erf", op="Erf", input=node.input)
        inner.attr["T"].type = kind
        one = graph_def.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].type = kind
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, tf.as_dtype(kind), []))
        node.op = "Sub"
        node.input[:] = [one.name, inner.name]


class _Listener(logging.Handler):
    """Keeps what tf2onnx logs as errors; frees memory at each pass of its optimizer, which begins with a message.

    The optimizer makes a copy of the whole graph for each of its many passes, in reference cycles: those of ResNet-50
    add up to 8 GB where nobody collects them.
    """

    def __init__(self, lines: list[str], *, free: bool) -> None:
        super().__init__(_PASS_LEVEL if free else logging.ERROR)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self._lines.append(record.getMessage())
        elif str(record.msg).startswith("Apply "):
            gc.collect()


@contextmanager
def _complaints(*, free: bool) -> Iterator[list[str]]:
    """Collect what tf2onnx logs as errors; nothing of its log goes further.

    Args:
        free: free memory on the way, which a small graph is not worth.
    """
    lines: list[str] = []
    logger, handler = logging.getLogger("tf2onnx"), _Listener(lines, free=free)
    before = (logger.level, logger.propagate, logger.handlers[:])
    logger.handlers[:] = [handler]
    logger.setLevel(handler.level)
    logger.propagate = False
    gc.freeze()  # what is there already need not be looked through each time
    try:
        yield lines
    finally:
        gc.unfreeze()
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.handlers[:] = before[2]
        if free:
            gc.collect()


def _refuse_unsupported(model: Any, graph_def: Any, complaints: Sequence[str]) -> None:
    """Raise when operations of TensorFlow were left in the model."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    types: dict[str, list[str]] = defaultdict(list)
    for node in nodes_of(model.graph):
        if not onnx.defs.has(node.op_type, domains.get(node.domain, 1), node.domain):
            types[node.op_type].append(node.name)
    original = {node.name: node.op for node in graph_def.node}
    for failed in (match[1] for line in complaints for match in _FAILED.finditer(line)):
        # An operation that failed may have the same name in ONNX, with another meaning.
        if failed in original and failed not in types[original[failed]]:
            types[original[failed]].append(failed)
    types = defaultdict(list, {kind: names for kind, names in types.items() if names})
    if not types:
        return
    listed = [f"{kind} ({len(names)}, such as {names[0]!r})" for kind, names in sorted(types.items())]
    more = f" and {len(listed) - _MAX_LISTED} more types" if len(listed) > _MAX_LISTED else ""
    version = domains.get("", domains.get("ai.onnx", 0))
    raise ExportError(
        f"opset {version} of ONNX, as tf2onnx writes it, has no form of {', '.join(listed[:_MAX_LISTED])}{more}",
        hint=_OTHER_WAYS,
    )


def _upgrade(model: Any, opset: int) -> Any:
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise ExportError(
            f"ONNX opset {opset}: the model cannot be taken from opset {_LAST_OPSET} there: {first_line(error)}",
            hint=f"--opset {_LAST_OPSET} or lower",
        ) from error
