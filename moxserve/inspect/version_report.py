"""What is to be told of a version directory: its manifest, its SavedModel, its variants, its files. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from moxserve import file
from moxserve.errors import MoxserveError
from moxserve.export.manifest import (
    WARMUP_PATH,
    Manifest,
    Variant,
    check_files,
    files_of,
    read_manifest,
)
from moxserve.inspect.detect import Subject
from moxserve.inspect.formats import describe_model
from moxserve.inspect.graph_report import describe_graph, signatures_table
from moxserve.inspect.graphs import TensorRow
from moxserve.inspect.records import read_rows
from moxserve.inspect.report import Report, Table, columns
from moxserve.serving.backends.contents import GRAPH_FILES, MODEL_FILES, look
from moxserve.types import Signature

__all__ = ["describe_version"]

_SAVED_MODEL = "saved_model"


def describe_version(report: Report, tags: Collection[str], *, digests: bool) -> None:
    """Put what is in a version directory into a report.

    Args:
        report: of the directory; gets facts, tables and problems.
        tags: of the MetaGraph.
        digests: compare the files with the checksums in the manifest, which reads all of them.

    Raises:
        DataError: the manifest or the graph is damaged.
        UsageError: no graph has these tags.
    """
    path = report.path
    manifest = read_manifest(path)
    if manifest is not None:
        report.facts |= _manifest_facts(manifest)
    report.facts["size_bytes"] = file.get_size(path, recursive=True)
    graph = next((n for n in GRAPH_FILES if os.path.isfile(os.path.join(path, n))), "")
    if graph:
        describe_graph(report, os.path.join(path, graph), tags, os.path.join(path, "assets"))
    elif manifest is not None:
        report.tables.append(signatures_table([r for s in manifest.signature_map().values() for r in _rows_of(s)]))
    variants = _variants_table(path, manifest)
    if variants.rows:
        report.tables.append(variants)
    if not graph and manifest is None:
        _only_model(report)
    if file.exists(os.path.join(path, WARMUP_PATH)):
        rows, problems = read_rows(Subject("version", path, path))
        report.facts["warmup_records"] = len(rows)
        report.problems += problems
    if manifest is not None:
        report.facts |= {"files": len(manifest.files), "files_checked": "sizes and SHA-256" if digests else "sizes"}
        report.problems += check_files(path, digests=digests)


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model_name": manifest.model_name,
        "created": manifest.created.isoformat(),
        "tools": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    source = manifest.source.model_dump(exclude_none=True)
    step = source.pop("global_step", None)
    told = next((str(source[key]) for key in ("checkpoint", "path") if source.get(key)), "")
    facts["made_from"] = f"{told} (step {step})" if step is not None else told
    return {key: value for key, value in facts.items() if value}


def _rows_of(signature: Signature) -> list[TensorRow]:
    sides = (("input", signature.inputs), ("output", signature.outputs))
    return [
        TensorRow(signature.name, signature.method, side, alias, spec.dtype.name, spec.shape, spec.tensor)
        for side, specs in sides
        for alias, spec in specs.items()
    ]


def _variants_table(path: str, manifest: Manifest | None) -> Table:
    """Return one row a form of the model, the SavedModel itself where the manifest tells of it."""
    names = file.list_directory(path, recursive=True, skip_dir=True)
    declared = {v.name: v for v in manifest.variants} if manifest else {}
    found = {v.name: v for v in look(path).variants}
    heading = columns(
        "name format precision size:bytes rows:count max_error:figure rel_l2:figure top1:figure accuracy:figure "
        "load_s:figure ms_b1:figure rows_s_b32:figure peak_mb:figure path:data enabled"
    )
    rows = [_variant_row(path, variant, names) for variant in {**declared, **found}.values()]
    return Table("variants", heading, rows)


def _variant_row(path: str, variant: Variant, names: list[str]) -> tuple[Any, ...]:
    own = files_of(variant, names)
    return (
        variant.name,
        variant.format,
        variant.precision or "float32",
        sum(file.get_size(os.path.join(path, name)) for name in own) if own else None,
        *_compared(variant),
        *_measured(variant),
        variant.path,
        "yes" if variant.enabled else "no",
    )


def _compared(variant: Variant) -> tuple[Any, ...]:
    """Return rows, largest error, relative error, agreement and accuracy; of a SavedModel what verification found."""
    figures, checked = variant.figures, variant.verification
    if figures is not None:
        return (figures.rows, figures.max_abs_error, figures.rel_l2, figures.top1_agreement, figures.accuracy)
    if checked is not None:
        return (checked.rows, checked.max_abs_error, None, None, None)
    return (None,) * 5


def _measured(variant: Variant) -> tuple[Any, ...]:
    """Return load time, latency of one row, throughput at 32 and peak memory."""
    measured = variant.measured
    if measured is None:
        return (None,) * 4
    one, many = measured.at(1), measured.at(32)
    return (
        measured.load_s,
        one.p50_ms if one else None,
        many.rows_per_s if many else None,
        measured.peak_memory_mb,
    )


def _only_model(report: Report) -> None:
    """Tell of the model of another format that is all there is."""
    for name, kind in MODEL_FILES.items():
        if os.path.isfile(path := os.path.join(report.path, name)):
            try:
                describe_model(report, path, kind)
            except MoxserveError as error:
                report.problems.append(error.message)
            return
