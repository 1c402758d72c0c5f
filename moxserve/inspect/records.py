"""Warmup records and request logs: what each record asks for, and which would keep a server from loading a version.

Both are TFRecords of PredictionLogs; a request log becomes a warmup file as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from moxserve import file
from moxserve.errors import DataError, InvalidArgument, UsageError
from moxserve.export.manifest import MAX_WARMUP_RECORDS, WARMUP_PATH
from moxserve.inspect.detect import Subject, need
from moxserve.inspect.graphs import dtype_name, shape_of, signature_rows
from moxserve.inspect.protos import read_graph_file
from moxserve.inspect.report import shape_text
from moxserve.inspect.stores import graph_path
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto
from moxserve.protocol.tfrecord import read_records
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["RecordRow", "read_rows", "records_path"]


@dataclass(frozen=True, slots=True)
class RecordRow:
    """One record.

    Attributes:
        index: from 0, in file order.
        kind: `predict`, `classify`, `regress`, `multi_inference`, `session_run` or `predict_streamed`; empty without a
            request.
        model: name that it was sent to.
        signature: keys, with commas between.
        inputs: alias with dtype and shape, or how many examples.
        batch: rows; None where the inputs do not agree on it.
        size_bytes: of the record.
        problem: what keeps it from being replayed; empty when nothing is known to.
    """

    index: int
    kind: str
    model: str
    signature: str
    inputs: str
    batch: int | None
    size_bytes: int
    problem: str = ""


def records_path(subject: Subject) -> str:
    """Return the file of records that a subject is or holds.

    Raises:
        UsageError: it has none.
    """
    need(subject, ("version", "records"), "warmup records")
    if subject.kind == "records":
        return subject.path
    path = os.path.join(subject.path, WARMUP_PATH)
    if not file.exists(path):
        raise UsageError(f"{subject.path} has no warmup records ({WARMUP_PATH})")
    return path


def read_rows(subject: Subject) -> tuple[list[RecordRow], list[str]]:
    """Read the records of a version or of a file.

    Returns:
        What each asks for, and what is wrong with the file as a whole. Records before a damaged one are told.
    """
    path = records_path(subject)
    aliases = _aliases(subject.path) if subject.kind == "version" else None
    rows: list[RecordRow] = []
    problems = []
    try:
        for payload in read_records(path):
            rows.append(_row(len(rows), payload, aliases))
    except DataError as error:
        problems.append(error.message)
    if len(rows) > MAX_WARMUP_RECORDS:
        problems.append(f"{len(rows)} records; servers refuse a warmup file with more than {MAX_WARMUP_RECORDS}")
    broken = sum(bool(row.problem) for row in rows)
    if broken:
        problems.append(f"{broken} of {len(rows)} records cannot be replayed")
    if not rows and not problems:
        problems.append(f"{path} holds no records")
    return rows, problems


def _aliases(version_dir: str) -> Mapping[str, set[str]] | None:
    """Return the inputs of each signature of a version; None where it has no SavedModel to tell them."""
    try:
        meta = read_graph_file(graph_path(version_dir)).meta_graph()
    except (UsageError, DataError):
        return None
    found: dict[str, set[str]] = {key: set() for key in meta.signature_def}
    for row in signature_rows(meta.signature_def):
        if row.side == "input":
            found[row.signature].add(row.alias)
    return found


def _row(index: int, payload: bytes, aliases: Mapping[str, set[str]] | None) -> RecordRow:
    size = len(payload)
    try:
        log = messages.PredictionLog.FromString(payload)
    except DecodeError:
        return RecordRow(index, "", "", "", "", None, size, _other_message(payload))
    kind = log.WhichOneof("log_type")
    if kind is None:
        return RecordRow(index, "", "", "", "", None, size, _other_message(payload))
    name = kind.removesuffix("_log")
    request: Any = getattr(getattr(log, kind), "request", None)
    if kind == "predict_log":
        return _predict(index, name, request, size, aliases)
    if kind in ("classify_log", "regress_log", "multi_inference_log"):
        return _examples(index, name, request, size, aliases)
    return RecordRow(index, name, "", "", "", None, size, f"servers do not replay {kind}")


def _other_message(payload: bytes) -> str:
    try:
        features = sorted(messages.Example.FromString(payload).features.feature)
    except DecodeError:
        features = []
    if features:
        return f"a tf.Example with {', '.join(features[:4])}, not a PredictionLog"
    return "no PredictionLog with a request"


def _predict(index: int, kind: str, request: Any, size: int, aliases: Mapping[str, set[str]] | None) -> RecordRow:
    signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
    problems = list(_misfits(signature, set(request.inputs), aliases))
    told, batches = [], set()
    for alias, tensor in sorted(request.inputs.items()):
        shape = shape_of(tensor.tensor_shape)
        told.append(f"{alias}: {dtype_name(tensor.dtype)}{shape_text(shape)}")
        batches.add(shape[0] if shape else None)
        try:
            from_proto(tensor)
        except InvalidArgument as error:
            problems.append(f"input {alias!r}: {error.message}")
    batch = batches.pop() if len(batches) == 1 else None
    problem = "; ".join(problems)
    return RecordRow(index, kind, request.model_spec.name, signature, ", ".join(told), batch, size, problem)


def _examples(index: int, kind: str, request: Any, size: int, aliases: Mapping[str, set[str]] | None) -> RecordRow:
    specs = [task.model_spec for task in request.tasks] if kind == "multi_inference" else [request.model_spec]
    signatures = list(dict.fromkeys(spec.signature_name or DEFAULT_SIGNATURE for spec in specs))
    which = request.input.WhichOneof("kind")
    count = len(getattr(request.input, which).examples) if which else 0
    problems = [problem for key in signatures for problem in _misfits(key, None, aliases)]
    if not count:
        problems.append("it has no examples")
    return RecordRow(
        index,
        kind,
        specs[0].name if specs else "",
        ", ".join(signatures),
        f"{count} tf.Example{'' if count == 1 else 's'}",
        count,
        size,
        "; ".join(problems),
    )


def _misfits(signature: str, given: set[str] | None, aliases: Mapping[str, set[str]] | None) -> Iterator[str]:
    """Yield what a record asks for that the version beside it does not have."""
    if aliases is None:
        return
    if signature not in aliases:
        yield f"the version has no signature {signature!r}"
    elif given is not None and given != aliases[signature]:
        wanted = ", ".join(sorted(aliases[signature])) or "none"
        yield f"signature {signature!r} takes the inputs {wanted}; the record has {', '.join(sorted(given)) or 'none'}"
