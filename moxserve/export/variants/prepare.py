"""The graph that every variant is converted from: frozen, transformed, and compared with itself after each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moxserve.export.frozen import FrozenGraph, freeze
from moxserve.export.targets import VariantOptions
from moxserve.export.tolerances import TOLERANCES

__all__ = ["Prepared", "prepare"]

# Enough to see a wrong number; each step runs them once.
_CHECK_ROWS = 4
_TINY = 1e-12


@dataclass(frozen=True)
class Prepared:
    """The graph for the converters.

    Attributes:
        graph: what they convert.
        steps: what was done to it, as `TransformStep` of the report holds it.
        nodes: in the frozen graph, before the steps.
    """

    graph: FrozenGraph
    steps: tuple[Mapping[str, Any], ...]
    nodes: int


def prepare(directory: str, key: str, options: VariantOptions, rows: Mapping[str, np.ndarray]) -> Prepared:
    """Freeze a signature of a SavedModel and transform the graph.

    Args:
        directory: the SavedModel.
        key: of the signature.
        options: which transforms, Grappler passes, and whether XLA.
        rows: some rows to compare with after each step, by alias; without them nothing is compared.

    Raises:
        ExportError: the signature cannot be frozen, or a transform failed.
        UsageError: the transforms cannot be read.
    """
    from moxserve.export import transforms

    asked = transforms.DEFAULT_TRANSFORMS if options.transforms is None else options.transforms
    parsed = transforms.parse_transforms(asked)
    frozen = freeze(directory, key)
    limit = TOLERANCES["float32"].rel_l2 or 0.0
    inputs, outputs = frozen.input_nodes, frozen.output_nodes
    with _comparison(frozen, rows) as check:
        result = transforms.apply_transforms(frozen.graph_def, inputs, outputs, parsed, check, limit)
        graph_def, steps = result.graph_def, list(result.steps)
        if options.grappler:
            result = transforms.run_grappler(graph_def, inputs, outputs, options.grappler, check, limit)
            graph_def, steps = result.graph_def, [*steps, *result.steps]
        if options.xla:
            result = transforms.compile_with_xla(graph_def, inputs, outputs, check, limit)
            graph_def, steps = result.graph_def, [*steps, *result.steps]
    graph = replace(frozen, graph_def=graph_def)
    return Prepared(graph, tuple(step.to_json() for step in steps), len(frozen.graph_def.node))


@contextlib.contextmanager
def _comparison(frozen: FrozenGraph, rows: Mapping[str, np.ndarray]) -> Iterator[Callable[[Any], float] | None]:
    """Give a function that tells how far a graph's answers are from the frozen one's, as the largest relative L2."""
    if not rows:
        yield None
        return
    few = {alias: array[:_CHECK_ROWS] for alias, array in rows.items()}
    expected = frozen.run(few)

    def check(graph_def: Any) -> float:
        got = replace(frozen, graph_def=graph_def).run(few)
        return max((_distance(got[alias], want) for alias, want in expected.items()), default=0.0)

    yield check


def _distance(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.dtype.kind not in "fcV":
        return float(np.mean(got != want)) if want.size else 0.0
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    a, b = got.astype(kind), want.astype(kind)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    return float(np.linalg.norm((a - b)[finite]) / max(float(np.linalg.norm(b[finite])), _TINY))
