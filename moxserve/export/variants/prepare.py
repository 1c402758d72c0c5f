"""The graph that every variant is converted from: frozen, transformed, and compared with itself after each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moxserve.export.frozen import FrozenGraph, freeze
from moxserve.export.report.model import Sparsity, TransformStep
from moxserve.export.sources.samples import fixed_batches
from moxserve.export.targets import VariantOptions

__all__ = ["Prepared", "prepare"]

# Enough to see a wrong number; each step runs them once.
_CHECK_ROWS = 4
_MATRIX = 2
_LEAST_WEIGHTS = 64
_FLOATS = (1, 14, 19)  # DT_FLOAT, DT_BFLOAT16, DT_HALF
# Training leaves next to no weight at exactly zero.
_PRUNED = 0.05


@dataclass(frozen=True)
class Prepared:
    """The graph for the converters.

    Attributes:
        graph: what they convert.
        compiled: the same, marked for XLA, which only TensorFlow can read; None when that was not asked for.
        steps: what was done to it.
        nodes: in the frozen graph, before the steps.
        quantized: a step made weights or activations less precise than float32, as it was told.
        sparsity: of the weights, when enough of them are zero that somebody has pruned them.
        notes: which steps were undone, and why.
    """

    graph: FrozenGraph
    compiled: FrozenGraph | None
    steps: tuple[TransformStep, ...]
    nodes: int
    quantized: bool
    sparsity: tuple[Sparsity, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(
    directory: str, key: str, options: VariantOptions, rows: Mapping[str, np.ndarray], libraries: Sequence[str] = ()
) -> Prepared:
    """Freeze a signature of a SavedModel and transform the graph.

    Args:
        directory: the SavedModel.
        key: of the signature.
        options: which transforms, Grappler passes, and whether XLA.
        rows: some rows to compare with after each step, by alias; without them nothing is compared.
        libraries: paths of custom operation libraries that the graph needs.

    Raises:
        ExportError: the signature cannot be frozen, or a transform failed.
        UsageError: the transforms cannot be read.
    """
    from moxserve.export import transforms

    asked = transforms.DEFAULT_TRANSFORMS if options.transforms is None else options.transforms
    parsed = transforms.parse_transforms(asked)
    frozen = freeze(directory, key)
    check = _check(frozen, rows)
    inputs, outputs = frozen.input_nodes, frozen.output_nodes
    result = transforms.apply_transforms(frozen.graph_def, inputs, outputs, parsed, check, libraries=libraries)
    graph_def, steps, notes = result.graph_def, list(result.steps), list(result.notes)
    if options.grappler:
        passes = options.grappler
        result = transforms.run_grappler(graph_def, inputs, outputs, passes, check, libraries=libraries)
        graph_def, steps = result.graph_def, [*steps, *result.steps]
        notes.extend(result.notes)
    compiled = None
    if options.xla:
        result = transforms.compile_with_xla(graph_def, inputs, outputs, check)
        compiled, steps = replace(frozen, graph_def=result.graph_def), [*steps, *result.steps]
        notes.extend(result.notes)
    loose = {name for name, info in transforms.TRANSFORMS.items() if info.limit}
    return Prepared(
        graph=replace(frozen, graph_def=graph_def),
        compiled=compiled,
        steps=tuple(_told(step) for step in steps),
        nodes=len(frozen.graph_def.node),
        quantized=any(step.name in loose and step.outcome == "applied" for step in steps),
        sparsity=_sparsity(graph_def),
        notes=tuple(notes),
    )


def _sparsity(graph_def: Any) -> tuple[Sparsity, ...]:
    """Count the zeros of the weights: constants of rank 2 or more that are not tiny."""
    import tensorflow as tf

    found = []
    for node in graph_def.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is None or len(tensor.tensor_shape.dim) < _MATRIX or tensor.dtype not in _FLOATS:
            continue
        values = tf.make_ndarray(tensor)
        if values.size >= _LEAST_WEIGHTS:
            zeros = int(values.size - np.count_nonzero(values))
            found.append(Sparsity(variable=node.name, size=values.size, zeros=zeros))
    total = sum(one.size for one in found)
    return tuple(found) if total and sum(one.zeros for one in found) / total >= _PRUNED else ()


def _check(frozen: FrozenGraph, rows: Mapping[str, np.ndarray]) -> Any:
    from moxserve.export.transforms import output_check

    if not rows:
        return None
    inputs = frozen.signature.inputs
    # A graph with a fixed batch takes that many rows, and there are whole batches of them.
    count = max(fixed_batches(inputs.values()), default=_CHECK_ROWS)
    feeds = {inputs[alias].tensor: array[:count] for alias, array in rows.items()}
    return output_check(frozen.graph_def, feeds, [spec.tensor for spec in frozen.signature.outputs.values()])


def _told(step: Any) -> TransformStep:
    """Return a step as the report holds it."""
    arguments: dict[str, str] = {}
    for name, value in step.arguments:
        arguments[name] = f"{arguments[name]}, {value}" if name in arguments else value
    facts = {**step.to_json(), "arguments": arguments, "why": step.reason}
    return TransformStep.model_validate(facts)
