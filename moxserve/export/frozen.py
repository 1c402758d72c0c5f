"""Freezing: one signature of a SavedModel as a graph without variables, cut to what the signature needs.

Everything that converts a model to another form starts from here: variables are constants, functions are inlined (what
is looked for in a graph must be in the graph), inputs are placeholders, no node has a device, and every output is the
first output of a node of its own, so that tools which know nodes only, not tensors, can name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import ExportError, did_you_mean
from moxserve.export.graphs import as_arrays, open_session
from moxserve.export.variants.work import FROZEN_GRAPH
from moxserve.protocol.metadata import signature_from_def
from moxserve.types import INIT_SIGNATURES, Signature, TensorSpec, node_name

__all__ = ["FrozenGraph", "freeze"]

_FAKE_QUANT = "FakeQuantWithMinMaxVars"
_PLACEHOLDER = "Placeholder"
_IDLE = ("Const", "Identity", "NoOp")
_LOWERED = "_lower_using_switch_merge"
_WRITERS = ("Assign", "Scatter", "ResourceScatter", "ResourceApply", "ResourceSparseApply", "Apply", "CountUpTo")
_STATE_HINT = "the SavedModel serves this signature; --signature KEY converts another one"


@dataclass(frozen=True)
class FrozenGraph:
    """A graph without state that computes one signature.

    Attributes:
        graph_def: the graph.
        signature: `TensorSpec.tensor` names the graph's tensors; inputs and outputs end in `:0`.
    """

    graph_def: Any
    signature: Signature

    @property
    def input_nodes(self) -> list[str]:
        """Names of the input nodes, in the signature's order."""
        return [node_name(spec.tensor) for spec in self.signature.inputs.values()]

    @property
    def output_nodes(self) -> list[str]:
        """Names of the output nodes, in the signature's order, none twice."""
        return list(dict.fromkeys(node_name(spec.tensor) for spec in self.signature.outputs.values()))

    @property
    def learned(self) -> bool:
        """Whether quantization-aware training left its ranges in the graph."""
        return any(node.op.startswith(_FAKE_QUANT) for node in self.graph_def.node)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph in a session of its own, by alias."""
        return run_graph(self.graph_def, self.signature, inputs)

    def write(self, folder: str) -> None:
        """Write the graph as `frozen_graph.pb`, and as a SavedModel that has this signature only.

        Args:
            folder: empty, or not there yet.
        """
        import tensorflow as tf

        tf1 = tf.compat.v1
        with open_session() as session:
            tf1.import_graph_def(self.graph_def, name="")
            sides = [
                {alias: _tensor_info(session.graph, spec) for alias, spec in specs.items()}
                for specs in (self.signature.inputs, self.signature.outputs)
            ]
            definition = tf1.saved_model.build_signature_def(*sides, self.signature.method)
            builder = tf1.saved_model.Builder(folder)
            builder.add_meta_graph_and_variables(
                session,
                [tf1.saved_model.tag_constants.SERVING],
                signature_def_map={self.signature.name: definition},
                strip_default_attrs=True,
            )
            builder.save()
        serialized = self.graph_def.SerializeToString(deterministic=True)
        file.write(os.path.join(folder, FROZEN_GRAPH), serialized, binary=True)


def run_graph(graph_def: Any, signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph without state once, in a session of its own.

    Args:
        graph_def: the graph.
        signature: names its tensors.
        inputs: by alias.

    Returns:
        The outputs by alias.
    """
    import tensorflow as tf

    with open_session() as session:
        tf.compat.v1.import_graph_def(graph_def, name="")
        fetches = {alias: spec.tensor for alias, spec in signature.outputs.items()}
        feeds = {signature.inputs[alias].tensor: value for alias, value in inputs.items()}
        return as_arrays(session.run(fetches, feeds))


def _tensor_info(graph: Any, spec: TensorSpec) -> Any:
    import tensorflow as tf

    info = tf.compat.v1.saved_model.build_tensor_info(graph.get_tensor_by_name(spec.tensor))
    if spec.shape is not None:
        # The graph may have forgotten what the signature promises.
        info.tensor_shape.CopyFrom(tf.TensorShape(spec.shape).as_proto())
    return info


def freeze(directory: str, key: str, tags: Sequence[str] = ("serve",)) -> FrozenGraph:
    """Load a SavedModel and freeze one of its signatures.

    Args:
        directory: the SavedModel.
        key: of the signature.
        tags: of its graph.

    Raises:
        ExportError: there is no such signature, or it needs state that a constant cannot stand in for.
    """
    import tensorflow as tf
    from tensorflow.python.util import deprecation

    tf1 = tf.compat.v1
    with open_session() as session, deprecation.silence():
        meta = tf1.saved_model.load(session, list(tags), directory)
        if key not in meta.signature_def:
            raise ExportError(
                f"no signature {key!r} in the SavedModel; {did_you_mean(key, sorted(meta.signature_def))}"
            )
        signature = signature_from_def(key, meta.signature_def[key])
        if signature is None:
            raise ExportError(f"signature {key!r} takes or gives sparse or composite tensors, which cannot be frozen")
        graph_def = session.graph.as_graph_def(add_shapes=False)
        _check_written(graph_def, meta.signature_def, key)
        graph_def, signature = _cut(graph_def, _with_shapes(session.graph, signature))
        outputs = [node_name(spec.tensor) for spec in signature.outputs.values()]
        graph_def = tf1.graph_util.extract_sub_graph(graph_def, sorted({*outputs, *_inputs(signature)}))
        graph_def = tf1.graph_util.convert_variables_to_constants(session, graph_def, sorted(set(outputs)))
    graph_def = _inline(graph_def, signature)
    _drop_idle_waits(graph_def)
    graph_def = tf1.graph_util.extract_sub_graph(graph_def, sorted({*outputs, *_inputs(signature)}))
    for node in graph_def.node:
        node.device = ""
        node.attr.pop("_class", None)  # colocation with nodes that may be gone
    _check_state(graph_def, key)
    return FrozenGraph(graph_def, signature)


def _inputs(signature: Signature) -> list[str]:
    return [node_name(spec.tensor) for spec in signature.inputs.values()]


def _with_shapes(graph: Any, signature: Signature) -> Signature:
    """Take shapes from the graph where the signature does not tell them."""

    def known(spec: TensorSpec) -> TensorSpec:
        if spec.shape is not None:
            return spec
        shape = graph.get_tensor_by_name(spec.tensor).shape
        return spec if shape.rank is None else replace(spec, shape=tuple(shape.as_list()))

    return replace(
        signature,
        inputs={a: known(s) for a, s in signature.inputs.items()},
        outputs={a: known(s) for a, s in signature.outputs.items()},
    )


def _cut(graph_def: Any, signature: Signature) -> tuple[Any, Signature]:
    """Make each input a placeholder and each output a node of its own, and name the tensors anew."""
    nodes = {node.name: node for node in graph_def.node}
    inputs, renamed = {}, {}
    for alias, spec in signature.inputs.items():
        node = nodes[node_name(spec.tensor)]
        if node.op != _PLACEHOLDER:
            node = _placeholder(graph_def, _free(alias, nodes), spec)
            nodes[node.name] = node
            renamed[_canonical(spec.tensor)] = node.name
        inputs[alias] = replace(spec, tensor=f"{node.name}:0")
    _rewire(graph_def.node, renamed)
    outputs = {}
    for alias, spec in signature.outputs.items():
        source = renamed.get(_canonical(spec.tensor), spec.tensor)
        name = _free(f"{alias}_output", nodes)
        node = graph_def.node.add(name=name, op="Identity", input=[source])
        node.attr["T"].type = spec.dtype.enum
        nodes[name] = node
        outputs[alias] = replace(spec, tensor=f"{name}:0")
    return graph_def, replace(signature, inputs=inputs, outputs=outputs)


def _canonical(tensor: str) -> str:
    name, _, index = tensor.partition(":")
    return name if index in ("", "0") else f"{name}:{index}"


def _free(alias: str, nodes: Mapping[str, Any]) -> str:
    """Return a node name near an alias that nobody has."""
    wanted = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in alias).lstrip("_.-") or "tensor"
    name, number = wanted, 0
    while name in nodes:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _placeholder(graph_def: Any, name: str, spec: TensorSpec) -> Any:
    import tensorflow as tf

    node = graph_def.node.add(name=name, op=_PLACEHOLDER)
    node.attr["dtype"].type = spec.dtype.enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(spec.shape).as_proto())
    return node


def _rewire(nodes: Iterable[Any], renamed: Mapping[str, str]) -> None:
    if not renamed:
        return
    for node in nodes:
        for i, text in enumerate(node.input):
            if _canonical(text) in renamed:
                node.input[i] = renamed[_canonical(text)]


def _inline(graph_def: Any, signature: Signature) -> Any:
    """Put the bodies of called functions in the place of the calls; bodies of loops and branches stay functions."""
    if not graph_def.library.function:
        return graph_def
    import tensorflow as tf
    from tensorflow.core.protobuf import rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    tf1 = tf.compat.v1
    for node in [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]:
        if _LOWERED in node.attr:
            # Loops and branches stay whole: converters know them as functions, not as Switch, Merge and Enter.
            node.attr[_LOWERED].b = False
    with tf.Graph().as_default() as graph:
        tf1.import_graph_def(graph_def, name="")
        meta = tf1.train.export_meta_graph(graph=graph)
    for function in meta.graph_def.library.function:
        # An implementation chosen by an optional rewriter hides the plain body.
        function.attr.pop("api_implements", None)
    kept = meta.collection_def["train_op"].node_list.value
    kept.extend([node_name(spec.tensor) for spec in signature.outputs.values()])
    kept.extend(_inputs(signature))
    config = tf1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.append("function")
    # What TensorFlow 2 writes is one stateful call; without this it stays one.
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    options.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    return tf_optimizer.OptimizeGraph(config, meta)


def _drop_idle_waits(graph_def: Any) -> None:
    """Let no node wait for constants: what TensorFlow 2 writes waits for the reads of all its variables at the end.

    They have become constants, and a constant that something waits for stays in the graph even when a transform has
    folded it into another. What can fail or has an effect, such as an assertion, is still waited for.
    """
    nodes = {node.name: node for node in graph_def.node}
    idle: dict[str, bool] = {}

    def is_idle(name: str) -> bool:
        if name not in idle:
            idle[name] = False  # a loop waits for itself
            node = nodes.get(name)
            idle[name] = node is not None and node.op in _IDLE and all(is_idle(node_name(i)) for i in node.input)
        return idle[name]

    for node in graph_def.node:
        kept = [text for text in node.input if not text.startswith("^") or not is_idle(node_name(text))]
        if len(kept) < len(node.input):
            node.input[:] = kept


def _check_state(graph_def: Any, key: str) -> None:
    """Check that nothing is left that keeps state.

    Raises:
        ExportError: something is: a table, a variable that is written, an iterator.
    """
    for node in _called_nodes(graph_def):
        reason = _state(node)
        if reason:
            raise ExportError(
                f"signature {key!r} cannot be frozen: node {node.name!r} ({node.op}) {reason}", hint=_STATE_HINT
            )


def _check_written(graph_def: Any, signatures: Mapping[str, Any], key: str) -> None:
    """Check that no signature changes a variable: a constant in its place would never see the change.

    Raises:
        ExportError: one does.
    """
    import tensorflow as tf

    for other, definition in signatures.items():
        if other in INIT_SIGNATURES:
            continue
        outputs = sorted({node_name(info.name) for info in definition.outputs.values() if info.name})
        reached = tf.compat.v1.graph_util.extract_sub_graph(graph_def, outputs)
        writer = next((n for n in _called_nodes(reached) if n.op.startswith(_WRITERS) and _state(n)), None)
        if writer is not None:
            raise ExportError(
                f"signature {key!r} cannot be frozen: signature {other!r} changes a variable "
                f"(node {writer.name!r}, {writer.op})",
                hint=_STATE_HINT,
            )


def _called_nodes(graph_def: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the functions that they call; its library may hold others, such as savers."""
    functions = {f.signature.name: f.node_def for f in graph_def.library.function}
    pending = [graph_def.node]
    seen: set[str] = set()
    while pending:
        for node in pending.pop():
            yield node
            named = [node.op, *(f.name for v in node.attr.values() for f in (v.func, *v.list.func))]
            called = {name for name in named if name in functions} - seen
            seen |= called
            pending.extend(functions[name] for name in called)


def _state(node: Any) -> str:
    from tensorflow.python.framework import op_def_registry

    resource = 20  # DT_RESOURCE
    definition = op_def_registry.get(node.op)
    if definition is None:
        return ""  # a call of a function, whose nodes are looked at in their turn
    arguments = (*definition.input_arg, *definition.output_arg)
    if any(a.is_ref or a.type == resource for a in arguments):
        return "needs a variable, a table or another resource at run time"
    return ""
