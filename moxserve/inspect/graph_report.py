"""What is to be told of a SavedModel's graph, a GraphDef or a MetaGraphDef. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from moxserve import file
from moxserve.inspect.graphs import (
    GraphFacts,
    TensorRow,
    asset_files,
    look_at,
    loose_ends,
    signature_rows,
    tables_in,
    variables_in,
)
from moxserve.inspect.protos import GraphFile, read_graph_file
from moxserve.inspect.report import Report, Table, columns

__all__ = ["describe_graph", "operations_table", "signatures_table"]


def describe_graph(report: Report, path: str, tags: Collection[str], assets_dir: str = "") -> None:
    """Put what is in a graph file into a report.

    Args:
        report: gets facts, tables, notes and problems.
        path: of the file.
        tags: of the MetaGraph.
        assets_dir: where a SavedModel's assets lie; empty when they are not to be looked for.

    Raises:
        DataError: the file is damaged.
        UsageError: no graph has these tags.
    """
    found = read_graph_file(path)
    report.facts["form"] = f"{found.form} ({'text' if found.text else 'binary'})"
    report.facts.setdefault("size_bytes", file.get_size(path))
    meta = found.meta_graph(tags)
    if meta is not None:
        _meta_facts(report, found, meta)
    graph_def = found.graph_def(tags)
    facts = look_at(graph_def)
    _graph_facts(report, facts)
    if meta is not None and meta.signature_def:
        report.tables.append(signatures_table(signature_rows(meta.signature_def)))
    else:
        inputs, outputs = loose_ends(graph_def)
        report.tables.append(_ends_table(inputs, outputs))
    report.tables.append(operations_table(facts))
    _devices_and_tables(report, facts, graph_def)
    if meta is not None:
        _assets(report, meta, assets_dir)


def _meta_facts(report: Report, found: GraphFile, meta: Any) -> None:
    info = meta.meta_info_def
    report.facts["tags"] = ",".join(info.tags)
    if len(found.meta_graphs()) > 1:
        others = (",".join(m.meta_info_def.tags) for m in found.meta_graphs() if m is not meta)
        report.notes.append(f"further graphs in it: {'; '.join(others)} (--tags)")
    if info.tensorflow_version:
        report.facts["tensorflow"] = info.tensorflow_version


def _graph_facts(report: Report, facts: GraphFacts) -> None:
    report.facts["nodes"] = facts.nodes
    if facts.functions:
        report.facts |= {"functions": facts.functions, "function_nodes": facts.function_nodes}
    report.facts |= {"constants": facts.constants, "constants_bytes": facts.constant_bytes}
    report.facts |= {"producer": facts.producer, "min_consumer": facts.min_consumer}
    if facts.unknown:
        report.facts["unknown_operations"] = facts.unknown
        report.notes.append(
            f"not among TensorFlow 2.21's operations: {', '.join(facts.unknown)}; a server needs their library"
        )


def _devices_and_tables(report: Report, facts: GraphFacts, graph_def: Any) -> None:
    rows = variables_in(graph_def)
    if rows:
        report.facts["variables"] = len(rows)
        report.facts["parameters"] = sum(row.parameters for row in rows)
        report.facts["variables_bytes"] = sum(row.size_bytes for row in rows)
    if facts.devices:
        report.tables.append(Table("devices", columns("device nodes:count"), sorted(facts.devices.items())))
    tables = tables_in(graph_def)
    if tables:
        report.tables.append(Table("tables", columns("name:long operation keys values filled_from"), list(tables)))


def _assets(report: Report, meta: Any, folder: str) -> None:
    rows: list[tuple[Any, ...]] = []
    for name in asset_files(meta):
        path = os.path.join(folder, name)
        there = bool(folder) and os.path.isfile(path)
        rows.append((name, file.get_size(path) if there else None))
        if folder and not there:
            report.problems.append(f"asset {name!r} is missing in {folder}")
    if rows:
        report.tables.append(Table("assets", columns("file size:bytes"), rows))


def signatures_table(rows: Sequence[TensorRow]) -> Table:
    """Return the table of signatures, one row a tensor."""
    heading = columns("signature method:long side alias dtype shape:shape tensor:long")
    cells: list[tuple[Any, ...]] = [(r.signature, r.method, r.side, r.alias, r.dtype, r.shape, r.tensor) for r in rows]
    return Table("signatures", heading, cells, count=len({row.signature for row in rows}))


def _ends_table(inputs: Sequence[TensorRow], outputs: Sequence[TensorRow]) -> Table:
    rows: list[tuple[Any, ...]] = [(r.side, r.dtype, r.shape, r.tensor) for r in (*inputs, *outputs)]
    title = "no signatures: placeholders, and nodes that nothing reads"
    return Table("ends", columns("side dtype shape:shape tensor:long"), rows, title)


def operations_table(facts: GraphFacts) -> Table:
    """Return how often each operation occurs, most frequent first."""
    names = sorted(
        facts.ops.keys() | facts.function_ops.keys(), key=lambda n: (-facts.ops[n] - facts.function_ops[n], n)
    )
    if facts.functions:
        heading = columns("operation nodes:count in_functions:count")
        rows: list[tuple[Any, ...]] = [(n, facts.ops[n], facts.function_ops[n]) for n in names]
        return Table("operations", heading, rows)
    return Table("operations", columns("operation nodes:count"), [(n, facts.ops[n]) for n in names])
