"""Turning an `input_fn` that returns one sample as tensors into a dataset of samples.

A user writes per-sample tensor code after `get_next()`. Run as it stands, that code would be executed for one sample at
a time and could not be batched. `lift_to_dataset` cuts the graph at the iterators and imports what lies between them
and the outputs into the function of a `tf.data` map: the samples are then computed in parallel, in order, and end where
the input ends. The original operations stay behind in the graph and are never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.cores import available_cores
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.repeatable import input_draws

__all__ = ["GET_NEXT", "graph_def_of", "lift_to_dataset", "pulls"]

# Samples that come from no iterator (random_uniform, constants) never end.
_ENDLESS = 1 << 62
GET_NEXT = "IteratorGetNext"
_PARALLEL_CALLS = min(8, available_cores())


@dataclass
class _Cut:
    """The part of a graph that one sample needs, from its iterators to the outputs.

    Attributes:
        operations: everything to be imported into the map function.
        sources: `IteratorGetNext` operations whose dataset is known: their values become the map's arguments.
        row: stands for the number of the row, where random operations draw for it.
        captured: resource tensors (tables, queues, unknown iterators) that the function refers to where they are.
    """

    operations: list[Any] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    captured: list[Any] = field(default_factory=list)
    row: Any = None


def lift_to_dataset(outputs: Sequence[Any], datasets: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Make a dataset whose elements are what `outputs` would give, run once per sample.

    Args:
        outputs: tensors of one sample.
        datasets: dataset behind an iterator, by the name of the iterator's resource tensor.

    Returns:
        A dataset of tuples, one component per output, shapes as the tensors promise; and the names of the resource
        tensors that its function refers to, whose owners must be initialised first.

    Raises:
        ModelSpecError: the sample depends on a placeholder, which nobody can feed inside of a dataset.
    """
    from tensorflow.python.data.util import structure

    cut = _cut(outputs, datasets)
    known = _resumed([datasets[op.inputs[0].name] for op in cut.sources])
    if _is_whole_element(outputs, cut, datasets):
        return known[0], []
    graph_def = graph_def_of(cut.operations, outputs[0].graph)
    draws = input_draws()
    if draws is not None and cut.row is not None:
        known.append(draws.rows(_ENDLESS))
    base = tf.data.Dataset.zip(tuple(known)) if known else tf.data.Dataset.range(_ENDLESS)

    consumed = {tensor.name for op in cut.operations for tensor in op.inputs}

    @tf.autograph.experimental.do_not_convert
    def sample(*elements: Any) -> tuple[Any, ...]:
        mapping: dict[str, Any] = {}
        if cut.row is not None:
            *elements, mapping[cut.row.name] = elements  # type: ignore[assignment]
        for op, element in zip(cut.sources, elements if cut.sources else (), strict=True):
            components = structure.to_tensor_list(datasets[op.inputs[0].name].element_spec, element)
            mapping.update({t.name: c for t, c in zip(op.outputs, components, strict=True)})
        graph = tf1.get_default_graph()
        mapping.update({tensor.name: graph.capture(tensor) for tensor in cut.captured})
        results = tf1.import_graph_def(
            graph_def,
            input_map={name: tensor for name, tensor in mapping.items() if name in consumed},
            return_elements=[t.name for t in outputs if t.name not in mapping],
            name="sample",
        )
        made = iter(results)
        values = [mapping[t.name] if t.name in mapping else next(made) for t in outputs]
        for value, original in zip(values, outputs, strict=True):
            value.set_shape(original.shape)  # what the user promised with set_shape is not in the GraphDef
        return tuple(values)

    dataset = _map(base, sample, cut)
    return dataset, [tensor.name for tensor in cut.captured]


def _cut(outputs: Sequence[Any], datasets: Mapping[str, Any]) -> _Cut:
    cut = _Cut()
    seen: set[str] = set()
    captured: dict[str, Any] = {}
    pending = [tensor.op for tensor in outputs]
    pulled: dict[str, list[Any]] = {}
    while pending:
        op = pending.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        _refuse_placeholder(op)
        if (draws := input_draws()) is not None and draws.by_row and op is draws.number.op:
            cut.row = draws.number
            continue
        if op.type == GET_NEXT and op.inputs[0].name in datasets:
            pulled.setdefault(op.inputs[0].name, []).append(op)
            continue
        cut.operations.append(op)
        pending.extend(op.control_inputs)
        for tensor in op.inputs:
            if tensor.dtype == tf.resource:  # variants are lists of tensors, which belong to the sample
                captured[tensor.name] = tensor
            else:
                pending.append(tensor.op)
    for name, ops in pulled.items():
        if len(ops) == 1:
            cut.sources.extend(ops)
        else:  # several elements of one dataset make a sample: the iterator itself must do the counting
            cut.operations.extend(ops)
            captured[name] = ops[0].inputs[0]
    cut.captured = list(captured.values())
    return cut


def _resumed(known: list[Any]) -> list[Any]:
    """Let datasets begin where earlier runs stopped, where a run is to repeat."""
    draws = input_draws()
    return known if draws is None else [draws.resumed(dataset) for dataset in known]


def _is_whole_element(outputs: Sequence[Any], cut: _Cut, datasets: Mapping[str, Any]) -> bool:
    """Whether the outputs are just what one dataset gives, in its order: then there is nothing to map."""
    if cut.operations or len(cut.sources) != 1:
        return False
    (source,) = cut.sources
    spec = datasets[source.inputs[0].name].element_spec
    plain = isinstance(spec, tuple) and all(isinstance(part, tf.TensorSpec) for part in spec)
    return plain and [t.name for t in outputs] == [t.name for t in source.outputs]


def _refuse_placeholder(op: Any) -> None:
    if op.type in ("Placeholder", "PlaceholderV2"):
        raise ModelSpecError(
            f"input_fn depends on the placeholder {op.name!r}, which cannot be fed while auto_batch makes batches",
            hint="make batches in input_fn and give run(auto_batch=False), or move the placeholder into model_fn",
        )


def graph_def_of(operations: Sequence[Any], graph: Any, keep_devices: bool = False) -> Any:
    """Collect operations of a graph, free of colocation with what stays behind.

    Args:
        operations: what to collect.
        graph: theirs.
        keep_devices: whether they stay on their devices, which the function of a dataset does not have.
    """
    graph_def = tf1.GraphDef()
    kept = {op.name for op in operations}
    for op in operations:
        node = graph_def.node.add()
        node.CopyFrom(op.node_def)
        if not keep_devices:
            node.device = ""
        node.attr.pop("_class", None)
        data = [name for name in node.input if not name.startswith("^")]
        control = [name for name in node.input if name.startswith("^") and name[1:] in kept]
        del node.input[:]
        node.input.extend([*data, *control])
    whole = graph.as_graph_def(add_shapes=False)
    graph_def.versions.CopyFrom(whole.versions)
    graph_def.library.CopyFrom(whole.library)
    return graph_def


def _is_seeded_random(op: Any) -> bool:
    """Whether an operation draws from a seeded sequence, whose order decides the values."""
    return any(name in op.node_def.attr and op.get_attr(name) for name in ("seed", "seed2"))


def pulls(op: Any) -> bool:
    """Whether an operation takes the next element of something, and so may be what ends the input."""
    return op.type == GET_NEXT or "Dequeue" in op.type or op.type.startswith("ReaderRead")


def _plain_options() -> Any:
    """Return options under which nothing runs ahead of the input's end.

    TensorFlow would make batches in parallel: some are still being filled when the input has ended, and would take
    elements away from the input that is started again.
    """
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return options


def _map(base: Any, function: Any, cut: _Cut) -> Any:
    """Map in parallel and in order.

    One sample at a time where samples pull elements inside of the function, which two of them must not do by turns; and
    where a seeded random operation must repeat from run to run.
    """
    from tensorflow.python.data.ops import map_op

    pulling = any(pulls(op) for op in cut.operations)
    if pulling or any(_is_seeded_random(op) for op in cut.operations):
        # What is pulled inside of the function ends the dataset, so the length of `base` means nothing then.
        dataset = map_op._MapDataset(base, function, preserve_cardinality=not pulling)
        return dataset.with_options(_plain_options()) if pulling else dataset
    return map_op._ParallelMapDataset(
        base, function, num_parallel_calls=_PARALLEL_CALLS, deterministic=True, preserve_cardinality=True
    )
