"""Grappler, TensorFlow's graph optimizer, run once on a graph that is kept, not anew whenever the graph is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moxserve.errors import ExportError, UsageError, did_you_mean
from moxserve.export.transforms.native import NativeTools
from moxserve.export.transforms.steps import Check, Rewrite, Stepper, TransformResult

__all__ = ["GRAPPLER_PASSES", "REFUSED_PASSES", "run_grappler"]

GRAPPLER_PASSES: Mapping[str, str] = {
    "pruning": "removes what outputs do not need, and operations without effect",
    "function": "puts the bodies of called functions in the place of the calls",
    "constfold": "computes what is constant, also where only shapes are known",
    "shape": "simplifies computations on shapes",
    "arithmetic": "simplifies arithmetic, and computes what is equal once",
    "dependency": "removes control edges that change nothing",
    "loop": "moves out of loops what does not change in them",
    "common_subgraph_elimination": "computes what is equal once",
    "debug_stripper": "removes assertions, CheckNumerics and prints",
}
_BOUND = "makes the graph fit the machine that it runs on, and may fail on another"
REFUSED_PASSES: Mapping[str, str] = {
    "remap": "writes private operations (_FusedConv2D) that only the device they were made for can run; TensorFlow "
    "does that itself when it loads the graph",
    "layout": f"{_BOUND} (the order of dimensions that is fast on its device)",
    "memory": f"{_BOUND} (copies between its device and its memory)",
    "pin_to_host": f"{_BOUND} (placement)",
    "scoped_allocator": f"{_BOUND} (private operations for memory)",
    "auto_parallel": f"{_BOUND} (replicas on its devices)",
    "implementation_selector": f"{_BOUND} (implementations for its device)",
    "auto_mixed_precision": "changes numbers; ask for a variant in bfloat16 instead",
    "auto_mixed_precision_cpu": "changes numbers; ask for a variant in bfloat16 instead",
    "auto_mixed_precision_mkl": "changes numbers; ask for a variant in bfloat16 instead",
    "auto_mixed_precision_onednn_bfloat16": "changes numbers; ask for a variant in bfloat16 instead",
}


def run_grappler(
    graph_def: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    passes: Sequence[str],
    check: Check | None = None,
    limit: float | None = None,
    *,
    strict: bool = False,
    libraries: Sequence[str] = (),
) -> TransformResult:
    """Run passes of Grappler on a frozen graph; a result that is wrong is undone.

    Args:
        graph_def: a frozen graph; stays as it is.
        inputs: names of the nodes that signatures feed.
        outputs: names of the nodes that they fetch.
        passes: keys of `GRAPPLER_PASSES`.
        check: as for `apply_transforms`.
        limit: largest error; as for `apply_transforms`.
        strict: raise when the result is wrong.
        libraries: paths of custom operation libraries that the graph needs.

    Returns:
        The new graph, and one step.

    Raises:
        UsageError: a pass is unknown, or what it makes is not for keeping.
        ExportError: a pass failed or crashed.
        VerificationError: the result is wrong, and `strict` is set.
    """
    check_passes(passes)
    stepper = Stepper(graph_def, list(inputs), list(outputs), check, limit, strict)
    if passes:
        with NativeTools(libraries) as tools:
            kept = list(dict.fromkeys([*outputs, *inputs]))

            def optimize(graph: Any) -> Any:
                return _public(tools.grappler(graph, kept, passes), graph)

            stepper.run(Rewrite("grappler", "tensorflow", optimize, tuple(("pass", name) for name in passes)))
    return stepper.result()


def check_passes(passes: Sequence[str]) -> None:
    """Refuse passes that are unknown or whose result is not for keeping.

    Raises:
        UsageError: there is one; says why.
    """
    for name in passes:
        if name in REFUSED_PASSES:
            raise UsageError(f"Grappler's {name} cannot be kept in a graph: it {REFUSED_PASSES[name]}")
        if name not in GRAPPLER_PASSES:
            raise UsageError(f"unknown Grappler pass {name!r}; {did_you_mean(name, GRAPPLER_PASSES)}")


def _public(graph_def: Any, before: Any) -> Any:
    """Return a graph, if there is no private operation in it that was not there before."""
    known = {node.op for node in before.node}
    for node in graph_def.node:
        if node.op.startswith("_") and node.op not in known:
            raise ExportError(f"Grappler put in {node.op} ({node.name!r}), which is not for keeping")
    return graph_def
