"""XLA, TensorFlow's compiler: a graph becomes one function that must be compiled, and is when it first runs.

Each session compiles it anew for each shape of inputs, for about a second; warmup records spare requests that. Marks
on single operations (`_XlaCompile`) are not used: TensorFlow's own optimizer fuses convolutions first, into operations
that XLA does not know, and what is left are many tiny clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.errors import ExportError, first_line
from moxserve.export.transforms.graph import split_input, with_nodes
from moxserve.export.transforms.steps import Check, Rewrite, Stepper, TransformResult

__all__ = ["compile_with_xla"]


def compile_with_xla(
    graph_def: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    check: Check | None = None,
    limit: float | None = None,
    *,
    strict: bool = False,
) -> TransformResult:
    """Put a graph into a function that XLA compiles; a graph that cannot be compiled is left as it is.

    Args:
        graph_def: a frozen graph; stays as it is. Converters to other formats want the graph before.
        inputs: names of the nodes that signatures feed; they stay.
        outputs: names of the nodes that they fetch; they stay.
        check: as for `apply_transforms`. It also finds out whether XLA can compile the graph at all: strings, and
            shapes that depend on values, it cannot.
        limit: largest error; as for `apply_transforms`.
        strict: raise when the result is wrong or does not run.

    Returns:
        The new graph, and one step.

    Raises:
        ExportError: the graph cannot be put into a function.
        VerificationError: the result is wrong, and `strict` is set.
    """
    stepper = Stepper(graph_def, list(inputs), list(outputs), check, limit, strict)
    stepper.run(Rewrite("xla", "tensorflow", lambda graph: _compiled(graph, inputs, outputs)))
    return stepper.result()


def _compiled(graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    import tensorflow as tf

    if any("_XlaMustCompile" in node.attr for node in graph_def.node):
        return graph_def
    computed = [name for name in outputs if name not in inputs]
    if not computed:
        return graph_def

    # A placeholder inside the function could not be compiled, even though nobody reads it.
    inner = with_nodes(graph_def, (node for node in graph_def.node if node.name not in inputs))
    read = {split_input(text)[0] for node in inner.node for text in node.input}

    def body(*values: Any) -> Any:
        feeds = {f"{name}:0": value for name, value in zip(inputs, values, strict=True) if name in read}
        return tf.graph_util.import_graph_def(inner, feeds, [f"{name}:0" for name in computed], name="")

    with tf.Graph().as_default() as whole:
        tf.graph_util.import_graph_def(graph_def, name="")
        specs = [(t.dtype, t.shape) for t in (whole.get_tensor_by_name(f"{name}:0") for name in inputs)]
    body.__annotations__ = {}  # tf.function takes them for types of tensors
    with tf.Graph().as_default() as graph:
        fed = [tf.compat.v1.placeholder(*spec, name=name) for name, spec in zip(inputs, specs, strict=True)]
        try:
            answers = tf.function(body, jit_compile=True, autograph=False)(*fed)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ExportError(f"the graph cannot be put into a function: {first_line(error)}") from error
        for name, answer in zip(computed, answers, strict=True):
            tf.identity(answer, name)
        return graph.as_graph_def()
