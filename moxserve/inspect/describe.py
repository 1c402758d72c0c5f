"""The report of `moxserve inspect show`: of each kind of subject, what one wants to know first. No TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

from moxserve import file
from moxserve.errors import DataError, MoxserveError
from moxserve.inspect.detect import Subject
from moxserve.inspect.formats import describe_model
from moxserve.inspect.graph_report import describe_graph
from moxserve.inspect.records import read_rows
from moxserve.inspect.report import Report, Table, columns
from moxserve.inspect.version_report import describe_version

__all__ = ["describe", "record_tables"]

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
        describe_version(report, tags, digests=digests)
    elif subject.kind in ("graphdef", "metagraph"):
        describe_graph(report, subject.path, tags)
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
        describe_model(report, subject.path, subject.kind)
    if not all_rows:
        _shorten(report)
    return report


def _shorten(report: Report) -> None:
    for table in report.tables:
        if table.key in ("operations", "entries", "variables") and len(table.rows) > _TOP:
            table.total, table.rows = len(table.rows), table.rows[:_TOP]


def _checkpoint(report: Report) -> None:
    is_folder = file.is_directory(report.path)
    folder, name = (report.path, "") if is_folder else os.path.split(report.path)
    names = file.list_directory(folder or ".", skip_dir=True)
    found = [n.removesuffix(".index") for n in names if n.endswith(".index")] if is_folder else [name]
    rows: list[tuple[Any, ...]] = []
    for prefix in sorted(found, key=lambda p: (_step(p) or 0, p)):
        files = [n for n in names if n.startswith(f"{prefix}.")] or [prefix]
        shards = [n for n in files if ".data-" in n]
        graph = "yes" if f"{prefix}.meta" in names else "no"
        size = sum(file.get_size(os.path.join(folder, n)) for n in files)
        rows.append((prefix, _step(prefix), len(shards) or None, size, graph))
        if len(files) > 1 and not shards:
            report.problems.append(f"{os.path.join(folder, prefix)}: its values are missing: no {prefix}.data-*")
    report.tables.append(Table("checkpoints", columns("checkpoint step:count shards:count size:bytes meta"), rows))
    report.notes.append(f"what is in one: moxserve inspect checkpoint {report.path}")


def _step(prefix: str) -> int | None:
    match = _STEP.search(prefix)
    return int(match.group(1)) if match else None


def _run(report: Report) -> None:
    from moxserve.config import load_pipeline
    from moxserve.pipeline.prepared import RESOLVED

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
