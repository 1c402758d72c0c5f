"""The frozen graph as a variant of its own: `saved_model.pb` without variables, and `frozen_graph.pb` beside it.

In bfloat16, TensorFlow's own pass puts casts around what gains from it (convolutions, matrix products and what lies
between them); constants are cast here and now, so that the file gets smaller and nothing is cast twice. Only ordinary
operations are left, none that belongs to a device: it loads wherever TensorFlow does, and is fast where the CPU
computes in bfloat16 (AMX or AVX-512 BF16).

float16 is not made: on CPUs TensorFlow computes it in slow fallbacks.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from typing import Any

import numpy as np

from moxserve.errors import ExportError, first_line
from moxserve.export.manifest import TensorNames
from moxserve.export.variants.learned import read_frozen
from moxserve.export.variants.work import Built, Work
from moxserve.types import Signature, node_name

__all__ = ["convert"]

_BFLOAT16 = 14  # DT_BFLOAT16
_PASS = "auto_mixed_precision_onednn_bfloat16"
# What the pass is for; a graph without any of these in bfloat16 gains nothing.
_PRODUCTS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MatMul", "BatchMatMulV2", "Einsum")


def convert(work: Work) -> Built:
    """Make the variant; see `Converter`.

    Raises:
        ExportError: bfloat16 changes nothing in this graph, or this machine cannot make it.
    """
    if work.target.precision == "float32":
        shutil.copytree(work.model, work.directory, dirs_exist_ok=True)
        graph_def = read_frozen(work)
        return Built("", _names(work.signature), details={"operations": _operations(graph_def)})
    if work.target.precision != "bfloat16":
        raise ExportError(
            f"a frozen graph in {work.target.precision} is not made: TensorFlow computes it in float32 or bfloat16 "
            "on a CPU",
            hint="--frozen bf16",
        )
    graph_def = _in_bfloat16(read_frozen(work), work.signature)
    # To ask a node for an attribute that it does not have would add it, and TensorFlow complains of such.
    low = Counter(node.op for node in graph_def.node if "T" in node.attr and node.attr["T"].type == _BFLOAT16)
    if not any(low[op] for op in _PRODUCTS):
        raise _unchanged(any(node.op in _PRODUCTS for node in graph_def.node))
    from moxserve.export.frozen import FrozenGraph

    FrozenGraph(graph_def, work.signature).write(work.directory)
    details = {"operations": _operations(graph_def), "bfloat16": dict(sorted(low.items()))}
    return Built("", _names(work.signature), details=details)


def _unchanged(has_products: bool) -> ExportError:
    """Return the error of a graph that the pass leaves as it is, by whether there is something for it to do."""
    if has_products:
        return ExportError(
            "TensorFlow computes nothing in bfloat16 on this CPU, and so rewrites nothing for it",
            hint="export on a machine with AVX-512 BF16 or AMX, or leave out --frozen bf16",
        )
    return ExportError("bfloat16 changes nothing: the graph has no convolution and no matrix product outside of loops")


def _names(signature: Signature) -> TensorNames:
    return TensorNames(
        inputs={alias: spec.tensor for alias, spec in signature.inputs.items()},
        outputs={alias: spec.tensor for alias, spec in signature.outputs.items()},
    )


def _operations(graph_def: Any) -> dict[str, int]:
    return dict(sorted(Counter(node.op for node in graph_def.node).items()))


def _in_bfloat16(graph_def: Any, signature: Signature) -> Any:
    """Run TensorFlow's pass; inputs and outputs keep their element types."""
    import tensorflow as tf
    from tensorflow.core.protobuf import rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    tf1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        tf1.import_graph_def(graph_def, name="")
        meta = tf1.train.export_meta_graph(graph=graph)
    tensors = [spec.tensor for side in (signature.inputs, signature.outputs) for spec in side.values()]
    # What is listed here is not touched, neither name nor type.
    meta.collection_def["train_op"].node_list.value.extend({node_name(name) for name in tensors})
    config = tf1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.fail_on_optimizer_errors = True
    options.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    setattr(options, _PASS, rewriter_config_pb2.RewriterConfig.ON)
    options.optimizers.extend([_PASS, "constfold"])
    try:
        rewritten = tf_optimizer.OptimizeGraph(config, meta)
    except (ValueError, tf.errors.OpError) as error:
        raise ExportError(f"TensorFlow cannot rewrite the graph for bfloat16: {first_line(error)}") from error
    for node in rewritten.node:
        if node.op == "Const":
            _pack(node.attr["value"].tensor)
    return rewritten


def _pack(tensor: Any) -> None:
    """Store the bytes of a bfloat16 tensor: as a list of numbers, most of them take three."""
    size = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.dtype == _BFLOAT16 and size > 1 and len(tensor.half_val) == size:
        tensor.tensor_content = np.asarray(tensor.half_val, "<u2").tobytes()
        del tensor.half_val[:]
