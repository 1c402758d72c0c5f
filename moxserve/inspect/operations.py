"""The operations of a graph: how many of each, or node by node. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

from moxserve.inspect.detect import Subject, need
from moxserve.inspect.formats import read_model
from moxserve.inspect.graph_report import operations_table
from moxserve.inspect.graphs import dtype_name, look_at, nodes_of
from moxserve.inspect.protos import read_graph_file
from moxserve.inspect.report import Report, Table, columns
from moxserve.inspect.stores import graph_path
from moxserve.serving.backends.contents import GRAPH_FILES, MODEL_FILES

__all__ = ["graph_file_of", "operations"]


def graph_file_of(subject: Subject) -> str:
    """Return the file with the TensorFlow graph that a subject is or holds.

    Raises:
        UsageError: it has none.
    """
    need(subject, ("version", "graphdef", "metagraph"), "TensorFlow graph")
    return graph_path(subject.path) if subject.kind == "version" else subject.path


def operations(subject: Subject, patterns: Sequence[str] = (), tags: Collection[str] = (), *, nodes: bool) -> Report:
    """Count the operations of a model, or list its nodes.

    Args:
        subject: a model.
        patterns: shell patterns of operations or nodes; none for all.
        tags: of the MetaGraph.
        nodes: list nodes.

    Raises:
        UsageError: the subject has no graph, or one whose nodes cannot be listed.
        DataError: the file is damaged.
    """
    if not nodes:
        model = _other_model(subject)
        if model:
            return _of_other_format(subject, model, patterns)
    path = graph_file_of(subject)
    graph_def = read_graph_file(path).graph_def(tags)
    report = Report(path, subject.kind, notes=subject.notes)
    if nodes:
        rows: list[tuple[Any, ...]] = [
            (node.name, node.op, _dtype(node), node.device, function, ", ".join(node.input))
            for function, node in nodes_of(graph_def)
            if _fits(patterns, node.op, node.name)
        ]
        report.tables.append(Table("nodes", columns("name:long operation dtype device function inputs:long"), rows))
        return report
    facts = look_at(graph_def)
    table = operations_table(facts)
    table.rows = [row for row in table.rows if _fits(patterns, row[0])]
    report.facts |= {"nodes": facts.nodes, "functions": facts.functions, "function_nodes": facts.function_nodes}
    if facts.unknown:
        report.facts["unknown_operations"] = facts.unknown
    report.tables.append(table)
    return report


def _fits(patterns: Sequence[str], *names: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _dtype(node: Any) -> str:
    enum = next((node.attr[key].type for key in ("dtype", "T") if key in node.attr), 0)
    return dtype_name(enum) if enum else ""


def _other_model(subject: Subject) -> tuple[str, str] | None:
    """Return file and format of a model of another runtime that a subject is, or holds in place of a SavedModel."""
    if subject.kind in MODEL_FILES.values():
        return subject.path, subject.kind
    if subject.kind != "version" or any(os.path.isfile(os.path.join(subject.path, name)) for name in GRAPH_FILES):
        return None
    found = ((os.path.join(subject.path, name), kind) for name, kind in MODEL_FILES.items())
    return next((model for model in found if os.path.isfile(model[0])), None)


def _of_other_format(subject: Subject, model: tuple[str, str], patterns: Sequence[str]) -> Report:
    facts = read_model(*model)
    report = Report(model[0], model[1], notes=subject.notes)
    rows: list[tuple[Any, ...]] = [(n, c) for n, c in facts.ops.most_common() if _fits(patterns, n)]
    report.facts["nodes"] = sum(facts.ops.values())
    if facts.unknown:
        report.facts["unknown_operations"] = facts.unknown
    report.tables.append(Table("operations", columns("operation nodes:count"), rows))
    return report
