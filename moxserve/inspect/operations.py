"""The operations of a graph: how many of each, or node by node. No TensorFlow."""

from __future__ import annotations

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

__all__ = ["graph_file_of", "operations"]

_OTHER = ("onnx", "tflite", "openvino")


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
    if subject.kind in _OTHER and not nodes:
        return _of_other_format(subject, patterns)
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


def _of_other_format(subject: Subject, patterns: Sequence[str]) -> Report:
    facts = read_model(subject.path, subject.kind)
    report = Report(subject.path, subject.kind, notes=subject.notes)
    rows: list[tuple[Any, ...]] = [(n, c) for n, c in facts.ops.most_common() if _fits(patterns, n)]
    report.facts["nodes"] = sum(facts.ops.values())
    if facts.unknown:
        report.facts["unknown_operations"] = facts.unknown
    report.tables.append(Table("operations", columns("operation nodes:count"), rows))
    return report
