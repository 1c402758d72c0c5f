"""Two models held against each other: signatures, operations, and the values of variables."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.inspect.detect import Subject
from moxserve.inspect.graphs import GraphFacts, TensorRow, look_at, signature_rows
from moxserve.inspect.operations import graph_file_of
from moxserve.inspect.protos import read_graph_file
from moxserve.inspect.report import Report, Table, columns, shape_text
from moxserve.inspect.stores import VALUES, Entry, Store, open_store

__all__ = ["compare"]

_GRAPHS = ("version", "graphdef", "metagraph")


def compare(a: Subject, b: Subject, tags: Collection[str] = (), *, values: bool = True) -> Report:
    """Tell how two models, checkpoints or npz files differ.

    Args:
        a: the first.
        b: the second; may be of another kind, such as a checkpoint against the SavedModel made of it.
        tags: of the MetaGraphs.
        values: compare the values of variables, not only their dtypes and shapes.

    Returns:
        A report whose tables are empty where nothing differs; the fact `different` counts their rows.

    Raises:
        UsageError: they have nothing in common that could be compared.
    """
    report = Report(f"{a.path} → {b.path}", "diff", notes=[*a.notes, *b.notes])
    graphs = all(s.kind in _GRAPHS for s in (a, b))
    if graphs:
        _compare_graphs(report, a, b, tags)
    if all(s.kind in VALUES for s in (a, b)):
        _compare_values(report, _store(a), _store(b), values=values)
    elif not graphs:
        raise UsageError(f"{a}, and {b}: these have neither variables nor a TensorFlow graph to compare")
    report.facts["different"] = sum(len(table.rows) for table in report.tables)
    report.tables = [table for table in report.tables if table.rows]
    return report


def _compare_graphs(report: Report, a: Subject, b: Subject, tags: Collection[str]) -> None:
    files = [read_graph_file(graph_file_of(subject)) for subject in (a, b)]
    signatures = [_signatures(found.meta_graph(tags)) for found in files]
    heading = columns("signature side alias change a:long b:long")
    rows: list[tuple[Any, ...]] = [
        (*key, *_change(x, y)) for key, x, y in _both(signatures[0], signatures[1]) if x != y
    ]
    report.tables.append(Table("signatures", heading, rows, "signatures that differ"))
    counts = [_operations(look_at(found.graph_def(tags))) for found in files]
    ops: list[tuple[Any, ...]] = [
        (name, x or 0, y or 0) for name, x, y in _both(counts[0], counts[1]) if (x or 0) != (y or 0)
    ]
    report.tables.append(Table("operations", columns("operation a:count b:count"), ops, "operations that differ"))


def _signatures(meta: Any) -> dict[Any, str]:
    rows: Iterable[TensorRow] = signature_rows(meta.signature_def) if meta is not None else ()
    return {(r.signature, r.side, r.alias): f"{r.dtype}{shape_text(r.shape)}" for r in rows}


def _operations(facts: GraphFacts) -> dict[Any, int]:
    return dict(facts.ops + facts.function_ops)


def _both(a: dict[Any, Any], b: dict[Any, Any]) -> list[tuple[Any, Any, Any]]:
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys())]


def _change(x: Any, y: Any) -> tuple[str, Any, Any]:
    return ("added" if x is None else "removed" if y is None else "changed", x, y)


def _store(subject: Subject) -> Store | None:
    try:
        return open_store(subject)
    except UsageError:
        if subject.kind == "version":
            return None  # frozen, or of another format: it has no variables, which is a difference that can be told
        raise


def _compare_values(report: Report, a: Store | None, b: Store | None, *, values: bool) -> None:
    known = [{e.name: e for e in store.entries} if store else {} for store in (a, b)]
    rows: list[tuple[Any, ...]] = []
    same = 0
    for name, x, y in _both(known[0], known[1]):
        told = [None if e is None else f"{e.dtype}{shape_text(e.shape)}" for e in (x, y)]
        if told[0] != told[1]:
            rows.append((name, *_change(*told), None, None))
            continue
        worst, unequal = _difference(a, b, x, y) if values and a and b else (0.0, 0)
        if unequal:
            rows.append((name, "values", *told, worst, unequal))
        else:
            same += 1
    report.facts["equal_variables"] = same
    heading = columns("name:long change a b max_difference:figure unequal:count")
    report.tables.append(Table("variables", heading, rows, "variables that differ"))


def _difference(a: Store, b: Store, x: Entry, y: Entry) -> tuple[float | None, int]:
    """Return the largest absolute difference, None for text, and how many elements differ; NaN equals NaN."""
    left, right = a.read(x), b.read(y)
    if left.dtype.kind in "OSU":
        return None, int(np.sum(left.astype(object) != right.astype(object)))
    if left.dtype.kind not in "fcV":
        wide = np.abs(left.astype(np.float64) - right.astype(np.float64))
        return float(wide.max(initial=0)), int(np.sum(left != right))
    kind = np.complex128 if left.dtype.kind == "c" else np.float64
    left, right = left.astype(kind), right.astype(kind)
    unequal = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    with np.errstate(invalid="ignore"):
        distance = np.abs(left - right)[unequal]
    return float(distance.max(initial=0)), int(unequal.sum())
