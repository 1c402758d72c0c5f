"""Warmup records: the requests that a server runs on a new version before it lets users at it.

`assets.extra/tf_serving_warmup_requests` is a TFRecord of PredictionLogs, as TensorFlow Serving reads it. The rows are
real ones, and so are the requests of a server's log (`request_logs`). A record that fails, or a 1001st one, would keep
the server from loading the version, so each is replayed on the artifact before it is published.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import DataError, MoxserveError, UsageError, first_line
from moxserve.export.job import JobOptions
from moxserve.export.manifest import MAX_WARMUP_RECORDS, WARMUP_PATH, Warmup
from moxserve.export.request_logs import LogSelection, select_requests
from moxserve.export.sources.base import StagedModel
from moxserve.export.sources.samples import fixed_batches
from moxserve.export.verify import Artifact, open_artifact, serialize_examples
from moxserve.protocol.prediction_log import (
    EXAMPLES_INPUT,
    examples_log,
    predict_log,
    requests_of,
)
from moxserve.protocol.tfrecord import write_records
from moxserve.tensorflow.executor.env import tf
from moxserve.types import CLASSIFY_METHOD, PREDICT_METHOD, REGRESS_METHOD, Signature, TensorSpec, dtype_of

__all__ = ["MAX_FILE_BYTES", "MAX_RECORDS", "MAX_RECORD_BYTES", "WARMUP_PATH", "WrittenWarmup", "write_warmup"]

MAX_RECORDS = MAX_WARMUP_RECORDS
# Servers take messages of up to 2 GiB, and read the whole file before they serve: this is where it stops to be useful.
MAX_RECORD_BYTES = 256 << 20
MAX_FILE_BYTES = 512 << 20
_FRAME_BYTES = 16  # lengths and checksums of a record


@dataclass(frozen=True)
class WrittenWarmup:
    """The warmup records of a version.

    Attributes:
        entry: for the manifest.
        notes: what the user should know, one sentence each.
    """

    entry: Warmup = field(default_factory=Warmup)
    notes: tuple[str, ...] = ()


def write_warmup(job: JobOptions, model: StagedModel, directory: str) -> WrittenWarmup:
    """Write the warmup records of a staged version: of its real rows for every signature, then of request logs.

    Args:
        job: gives batch sizes, request logs and the model's name.
        model: the staged model, with rows of its main signature.
        directory: the staged version.

    Returns:
        What was written, and what was left out and why.

    Raises:
        UsageError: more records than a server reads.
        DataError: a request log cannot be read at all.
        OpError: the main signature fails on its own rows, as it would on a server.
    """
    planned = list(_planned(job, model))
    if len(planned) > MAX_RECORDS:
        keys = {plan.signature.name for plan in planned}
        raise UsageError(
            f"{len(job.warmup_batches)} warmup batch sizes for {len(keys)} signatures make {len(planned)} records; "
            f"a server refuses more than {MAX_RECORDS}"
        )
    if not planned and not job.warmup_logs:
        return WrittenWarmup()
    with open_artifact(directory) as artifact:
        writing = _Writing(job.model_name, model, artifact)
        for plan in planned:
            writing.add_rows(plan)
        writing.tell_refused()
        logged = writing.add_logged(job.warmup_logs)
    if writing.payloads:
        path = os.path.join(directory, WARMUP_PATH)
        file.make_dirs(os.path.dirname(path))
        write_records(path, writing.payloads)
    entry = Warmup(
        records=len(writing.payloads),
        batch_sizes=tuple(dict.fromkeys(writing.sizes)),
        signatures=tuple(dict.fromkeys(writing.signatures)),
        logged=logged,
    )
    return WrittenWarmup(entry, tuple(writing.notes))


# Which records


@dataclass(frozen=True)
class _Plan:
    """One record to be made of rows: of which signature, how many of them, what is fed to it."""

    signature: Signature
    size: int
    inputs: Mapping[str, np.ndarray] = field(repr=False)


def _planned(job: JobOptions, model: StagedModel) -> Iterator[_Plan]:
    inputs = {key: _inputs_for(model.signatures[key], model) for key in _in_order(model)}
    usable = {key: found for key, found in inputs.items() if found is not None}
    sizes = {key: batch_sizes(job.warmup_batches, model.signatures[key], _count(rows)) for key, rows in usable.items()}
    for size in dict.fromkeys(size for found in sizes.values() for size in found):
        for key, rows in usable.items():
            if size in sizes[key]:
                yield _Plan(model.signatures[key], size, {alias: a[:size] for alias, a in rows.items()})


def _count(rows: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))


def _in_order(model: StagedModel) -> list[str]:
    return [model.main, *sorted(model.signatures.keys() - {model.main})]


def batch_sizes(asked: Sequence[int], signature: Signature, rows: int) -> list[int]:
    """Return the batch sizes of a signature's records: as asked, but no larger than the rows at hand.

    A graph with a fixed batch takes that size only.
    """
    fixed = fixed_batches(signature.inputs.values())
    if fixed:
        size = next(iter(fixed))
        return [size] if asked and len(fixed) == 1 and 0 < size <= rows else []
    return list(dict.fromkeys(min(size, rows) for size in asked)) if rows else []


def _inputs_for(signature: Signature, model: StagedModel) -> dict[str, np.ndarray] | None:
    """Return what to feed a signature: what the source says, or rows of the main one that fit; None without either."""
    if model.requests.get(signature.name) and _can_be_asked(signature):
        return dict(model.requests[signature.name])
    main, rows = model.signatures[model.main], model.rows
    if not rows or not _can_be_asked(signature):
        return None
    by_tensor = {spec.tensor: rows[alias] for alias, spec in main.inputs.items() if spec.tensor and alias in rows}
    found = {}
    for alias, spec in signature.inputs.items():
        values = by_tensor.get(spec.tensor, rows.get(alias))
        if values is not None and _fits(values, spec):
            found[alias] = values
    if len(found) == len(signature.inputs):
        return found
    return _as_examples(signature, rows)


def _can_be_asked(signature: Signature) -> bool:
    """Tell whether a request can carry what a signature takes: classify and regress take tf.Examples alone."""
    inputs = list(signature.inputs.values())
    takes_examples = len(inputs) == 1 and inputs[0].dtype.name == "string"
    return signature.method == PREDICT_METHOD or (
        takes_examples and signature.method in (CLASSIFY_METHOD, REGRESS_METHOD)
    )


def _fits(values: np.ndarray, spec: TensorSpec) -> bool:
    if dtype_of(values) != spec.dtype:
        return False
    if spec.shape is None:
        return True
    wanted, got = spec.shape[1:], values.shape[1:]
    return len(spec.shape) == values.ndim and all(w in (None, g) for w, g in zip(wanted, got, strict=True))


def _as_examples(signature: Signature, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Serialize the rows for a signature that takes tf.Examples: one vector of strings, and nothing else."""
    if len(signature.inputs) != 1:
        return None
    ((alias, spec),) = signature.inputs.items()
    if spec.dtype.name != "string" or spec.shape is None or len(spec.shape) != 1:
        return None
    try:
        return {alias: serialize_examples(rows)}
    except DataError:
        return None  # a complex number, for example


# Making them


class _Writing:
    """Makes records, tries each on the artifact, and keeps the good ones."""

    def __init__(self, model_name: str, model: StagedModel, artifact: Artifact) -> None:
        self.payloads: list[bytes] = []
        self.sizes: list[int] = []
        self.signatures: list[str] = []
        self.notes: list[str] = []
        self._name = model_name
        self._model = model
        self._artifact = artifact
        self._bytes = 0
        self._refused: dict[str, tuple[list[int], str]] = {}

    def add_rows(self, plan: _Plan) -> None:
        """Add a record of real rows.

        Raises:
            OpError: it is one of the main signature, and fails.
        """
        key, size = plan.signature.name, plan.size
        try:
            log = self._log(plan)
            self._try(log)
        except (tf.errors.OpError, MoxserveError) as error:
            if key == self._model.main:
                raise
            # The rows were those of another signature: they need not mean anything to this one.
            sizes, _ = self._refused.setdefault(key, ([], first_line(error)))
            sizes.append(size)
            return
        if self._keep(log, f"a warmup record of {size} rows for signature {key!r}"):
            self.sizes.append(size)
            self.signatures.append(key)

    def tell_refused(self) -> None:
        """Note which signatures did not answer the rows."""
        for key, (sizes, reason) in self._refused.items():
            told = ", ".join(map(str, sizes))
            self.notes.append(f"no warmup records of {told} rows for signature {key!r}: {reason}")

    def _log(self, plan: _Plan) -> Any:
        signature = plan.signature
        if signature.method in (CLASSIFY_METHOD, REGRESS_METHOD):
            ((_, examples),) = plan.inputs.items()
            return examples_log(signature.method, self._name, signature.name, examples)
        return predict_log(self._name, signature.name, plan.inputs)

    def _try(self, log: Any) -> None:
        for request in requests_of(log):
            inputs = request.inputs
            if request.method != PREDICT_METHOD:
                (alias,) = self._model.signatures[request.signature].inputs
                inputs = {alias: inputs[EXAMPLES_INPUT]}
            self._artifact.run(request.signature, inputs)

    def _keep(self, log: Any, what: str) -> bool:
        payload = log.SerializeToString()
        too_large = len(payload) > MAX_RECORD_BYTES
        if too_large or not self._add(payload):
            limit = f"a record may have {MAX_RECORD_BYTES}" if too_large else f"all of them may have {MAX_FILE_BYTES}"
            self.notes.append(f"{what} was left out: it has {len(payload)} bytes, and {limit}")
            return False
        return True

    def _add(self, payload: bytes) -> bool:
        """Add a record, if the file has room for it."""
        size = len(payload) + _FRAME_BYTES
        if self._bytes + size > MAX_FILE_BYTES:
            return False
        self._bytes += size
        self.payloads.append(payload)
        return True

    def add_logged(self, paths: Sequence[str]) -> int:
        """Add requests of logs, as many as there is room for.

        Returns:
            How many were added.
        """
        if not paths:
            return 0
        room = MAX_RECORDS - len(self.payloads)
        selection = select_requests(paths, self._model.signatures, self._name, room, MAX_RECORD_BYTES)
        added, full = 0, 0
        for log in selection.logs:
            try:
                self._try(log)
            except (tf.errors.OpError, MoxserveError) as error:
                selection.left_out(f"failed on the new version ({first_line(error)})")
                continue
            if not self._add(log.SerializeToString()):
                full += 1
                continue
            self.signatures += [request.signature for request in requests_of(log)]
            added += 1
        if full:
            selection.left_out(f"did not fit into the {MAX_FILE_BYTES} bytes that all records may have", full)
        self.notes.append(_told(selection, added))
        return added


def _told(selection: LogSelection, added: int) -> str:
    text = f"{added} of {selection.seen} logged requests became warmup records"
    reasons = [f"{count} {reason}" for reason, count in selection.reasons.items()]
    return text + (f"; left out: {'; '.join(reasons)}" if reasons else "")
