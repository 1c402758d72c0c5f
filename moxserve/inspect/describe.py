"""The report of `moxserve inspect show`: of each kind of subject, what one wants to know first. No TensorFlow."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from moxserve import file
from moxserve.errors import DataError, MoxserveError
from moxserve.export.manifest import WARMUP_PATH, Manifest, Variant, check_files, read_manifest
from moxserve.inspect.detect import Subject
from moxserve.inspect.formats import ModelFacts, read_model
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
from moxserve.inspect.records import read_rows
from moxserve.inspect.report import Report, Table, columns
from moxserve.serving.backends.contents import GRAPH_FILES, MODEL_FILES, look
from moxserve.types import Signature

__all__ = ["describe", "operations_table", "record_tables", "signatures_table"]

_TOP = 12
_STEP = re.compile(r"-(\d+)\Z")


def describe(subject: Subject, tags: Collection[str] = (), *, digests: bool = True, all_rows: bool = False) -> Report:
    """Tell what a subject is and holds.

    Args:
        subject: what to look at.
        tags: of the MetaGraph to tell about; empty for that of `serve`, or the first.
        digests: compare the files of a version with the checksums in its manifest, which reads all of them.
        all_rows: tell of every operation, not only of the most frequent ones.

    Raises:
        DataError: a file is damaged.
        UsageError: there is no graph with these tags.
    """
    report = Report(subject.path, subject.kind, notes=subject.notes)
    if subject.kind == "version":
        _version(report, tags, digests=digests)
    elif subject.kind in ("graphdef", "metagraph"):
        _graph_file(report, subject.path, tags)
    elif subject.kind == "checkpoint":
        _checkpoint(report)
    elif subject.kind == "run":
        _run(report)
    elif subject.kind == "records":
        report.facts["size_bytes"] = file.get_size(subject.path)
        record_tables(report, subject)
    elif subject.kind == "npz":
        _arrays(report)
    else:
        report.facts["size_bytes"] = _size_of_model(subject.path)
        _other_format(report, read_model(subject.path, subject.kind))
    if not all_rows:
        _shorten(report)
    return report


def _shorten(report: Report) -> None:
    for table in report.tables:
        if table.key in ("operations", "entries", "variables") and len(table.rows) > _TOP:
            table.total, table.rows = len(table.rows), table.rows[:_TOP]


# A version directory


def _version(report: Report, tags: Collection[str], *, digests: bool) -> None:
    path = report.path
    manifest = read_manifest(path)
    if manifest is not None:
        report.facts |= _manifest_facts(manifest)
    report.facts["size_bytes"] = file.get_size(path, recursive=True)
    graph = next((n for n in GRAPH_FILES if os.path.isfile(os.path.join(path, n))), "")
    if graph:
        _graph_file(report, os.path.join(path, graph), tags, os.path.join(path, "assets"))
    elif manifest is not None:
        report.tables.append(signatures_table([r for s in manifest.signature_map().values() for r in _rows_of(s)]))
    variants = _variants_table(path, manifest, bool(graph))
    if variants.rows:
        report.tables.append(variants)
    if not graph and manifest is None:
        _only_model(report)
    if file.exists(os.path.join(path, WARMUP_PATH)):
        rows, problems = read_rows(Subject("version", path, path))
        report.facts["warmup_records"] = len(rows)
        report.problems += problems
    if manifest is not None:
        wrong = check_files(path, digests=digests)
        report.facts["files"] = len(manifest.files)
        report.facts["files_checked"] = "sizes and SHA-256" if digests else "sizes"
        report.problems += wrong


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model_name": manifest.model_name,
        "created": manifest.created.isoformat(),
        "tools": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    source = manifest.source.model_dump(exclude_none=True)
    step = source.pop("global_step", None)
    told = next((str(value) for value in source.values() if value), "")
    facts["made_from"] = f"{told} (step {step})" if step is not None else told
    return {key: value for key, value in facts.items() if value}


def _rows_of(signature: Signature) -> list[TensorRow]:
    sides = (("input", signature.inputs), ("output", signature.outputs))
    return [
        TensorRow(signature.name, signature.method, side, alias, spec.dtype.name, spec.shape, spec.tensor)
        for side, specs in sides
        for alias, spec in specs.items()
    ]


def _variants_table(path: str, manifest: Manifest | None, has_graph: bool) -> Table:
    """Return one row a form of the model, the SavedModel too where the manifest tells of its verification."""
    declared = {v.name: v for v in manifest.variants} if manifest else {}
    found = {v.name: v for v in look(path).variants}
    rows = [_variant_row(path, v) for v in {**declared, **found}.values() if v.path != "." or has_graph]
    heading = columns("name format precision size:bytes rows:count max_error:figure path:long enabled")
    return Table("variants", heading, rows)


def _variant_row(path: str, variant: Variant) -> tuple[Any, ...]:
    checked = variant.verification
    return (
        variant.name,
        variant.format,
        variant.precision or "float32",
        _size_of_variant(path, variant),
        checked.rows if checked else None,
        checked.max_abs_error if checked else None,
        variant.path,
        "yes" if variant.enabled else "no",
    )


def _size_of_variant(path: str, variant: Variant) -> int | None:
    place = os.path.join(path, variant.path)
    if variant.path == ".":
        names = [os.path.join(place, name) for name in (*GRAPH_FILES, "variables", "assets")]
        return sum(file.get_size(name, recursive=True) for name in names if os.path.exists(name))
    if os.path.isdir(place):
        return file.get_size(place, recursive=True)
    return _size_of_model(place) if os.path.isfile(place) else None


def _size_of_model(path: str) -> int:
    """Return the size of a model file, that of OpenVINO's weights beside it included."""
    weights = path.removesuffix(".xml") + ".bin"
    beside = file.get_size(weights) if path.endswith(".xml") and os.path.isfile(weights) else 0
    return file.get_size(path) + beside


def _only_model(report: Report) -> None:
    """Tell of the model of another format that is all there is."""
    for name, kind in MODEL_FILES.items():
        if os.path.isfile(path := os.path.join(report.path, name)):
            try:
                _other_format(report, read_model(path, kind))
            except MoxserveError as error:
                report.problems.append(error.message)
            return


# Graphs


def _graph_file(report: Report, path: str, tags: Collection[str], assets_dir: str = "") -> None:
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
    return Table("signatures", heading, cells)


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


# Everything else


def _checkpoint(report: Report) -> None:
    prefixes = [report.path]
    if os.path.isdir(report.path):
        found = glob.glob(os.path.join(glob.escape(report.path), "*.index"))
        prefixes = sorted((f.removesuffix(".index") for f in found), key=lambda p: (_step(p) or 0, p))
    rows: list[tuple[Any, ...]] = []
    for prefix in prefixes:
        files = glob.glob(f"{glob.escape(prefix)}.*") or [prefix]
        shards = [f for f in files if ".data-" in f]
        graph = "yes" if os.path.isfile(f"{prefix}.meta") else "no"
        size = sum(file.get_size(f) for f in files)
        rows.append((os.path.basename(prefix), _step(prefix), len(shards) or None, size, graph))
        if len(files) > 1 and not shards:
            report.problems.append(f"{prefix}: its values are missing: no {os.path.basename(prefix)}.data-*")
    report.tables.append(Table("checkpoints", columns("checkpoint step:count shards:count size:bytes meta"), rows))
    report.notes.append(f"what is in one: moxserve inspect checkpoint {report.path}")


def _step(prefix: str) -> int | None:
    match = _STEP.search(prefix)
    return int(match.group(1)) if match else None


def _run(report: Report) -> None:
    from moxserve.config import load_pipeline
    from moxserve.pipeline.runner import RESOLVED

    path = os.path.join(report.path, RESOLVED)
    try:
        config = load_pipeline(path, environment=None).config
    except MoxserveError as error:
        raise DataError(f"{path} is no valid pipeline: {error.message}") from None
    if config.description:
        report.facts["description"] = config.description
    report.facts |= {name: getattr(s, "plugin", None) for name, s in config.stages().items() if hasattr(s, "plugin")}
    _checkpoint(report)
    report.notes.append(f"export it: moxserve export {report.path} --tf-serving DIR")


def record_tables(report: Report, subject: Subject) -> None:
    """Put the records of a version or file into a report."""
    rows, problems = read_rows(subject)
    report.facts["records"] = len(rows)
    heading = columns("index:count kind model signature batch:count inputs:long size:bytes problem:long")
    cells: list[tuple[Any, ...]] = [
        (r.index, r.kind, r.model, r.signature, r.batch, r.inputs, r.size_bytes, r.problem) for r in rows
    ]
    report.tables.append(Table("entries", heading, cells, "records"))
    report.problems += problems


def _arrays(report: Report) -> None:
    from moxserve.inspect.stores import NpzStore

    store = NpzStore(report.path)
    report.facts["size_bytes"] = file.get_size(report.path)
    report.facts["parameters"] = sum(entry.parameters for entry in store.entries)
    rows: list[tuple[Any, ...]] = [(e.name, e.dtype, e.shape, e.parameters, e.size_bytes) for e in store.entries]
    heading = columns("name:long dtype shape:shape parameters:count size:bytes")
    report.tables.append(Table("variables", heading, rows, "arrays"))


def _other_format(report: Report, facts: ModelFacts) -> None:
    if facts.producer:
        report.facts["producer"] = facts.producer
    report.facts |= {key.replace(" ", "_"): value for key, value in facts.versions.items()}
    report.facts |= {"weights": facts.weights, "weights_bytes": facts.weight_bytes, "nodes": sum(facts.ops.values())}
    sides = (("input", facts.inputs), ("output", facts.outputs))
    rows: list[tuple[Any, ...]] = [(side, f.name, f.dtype, f.shape) for side, fs in sides for f in fs]
    report.tables.append(Table("tensors", columns("side name:long dtype shape:shape"), rows, "inputs and outputs"))
    counts: list[tuple[Any, ...]] = sorted(facts.ops.items(), key=lambda item: (-item[1], item[0]))
    report.tables.append(Table("operations", columns("operation nodes:count"), counts))
    if facts.unknown:
        report.facts["unknown_operations"] = facts.unknown
        report.notes.append(f"not built into the runtime: {', '.join(facts.unknown)}")
