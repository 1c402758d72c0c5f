"""Warmup records: the requests that a server runs on a new version before it lets users at it.

`assets.extra/tf_serving_warmup_requests` is a TFRecord of PredictionLogs, as TensorFlow Serving reads it. The rows are
real ones; a record that fails or a 1001st record would keep the server from loading the version, so each is replayed on
the artifact before it is published.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import DataError, UsageError
from moxserve.export.job import JobOptions
from moxserve.export.manifest import WARMUP_PATH, Warmup
from moxserve.export.signatures import CLASSIFY, CLASSIFY_INPUT, PREDICT
from moxserve.export.sources.base import StagedModel
from moxserve.export.verify import Artifact, fixed_batches
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import from_proto, to_proto
from moxserve.protocol.tfrecord import read_records, write_records

__all__ = ["MAX_RECORDS", "WARMUP_PATH", "batch_sizes", "read_requests", "replay", "write_warmup"]

MAX_RECORDS = 1000


def batch_sizes(job: JobOptions, model: StagedModel) -> list[int]:
    """Return the batch sizes of a model's warmup records: as asked, but no larger than the rows at hand.

    A graph with a fixed batch takes that size only.
    """
    rows, fixed = model.row_count, fixed_batches(model.signatures[model.main].inputs.values())
    if fixed:
        size = next(iter(fixed))
        return [size] if job.warmup_batches and len(fixed) == 1 and 0 < size <= rows else []
    if not rows:
        return []
    return list(dict.fromkeys(min(size, rows) for size in job.warmup_batches))


def write_warmup(job: JobOptions, model: StagedModel, directory: str) -> Warmup:
    """Write the warmup records of a staged version.

    Args:
        job: gives batch sizes and the model's name.
        model: the staged model, with its rows.
        directory: the staged version.

    Returns:
        What was written.

    Raises:
        UsageError: more records than a server reads.
    """
    sizes = batch_sizes(job, model)
    names = [name for name in (PREDICT, CLASSIFY) if name in model.signatures]
    if len(sizes) * len(names) > MAX_RECORDS:
        raise UsageError(
            f"{len(sizes)} warmup batch sizes for {len(names)} signatures make {len(sizes) * len(names)} records; "
            f"a server refuses more than {MAX_RECORDS}"
        )
    if not sizes:
        return Warmup()
    path = os.path.join(directory, WARMUP_PATH)
    file.make_dirs(os.path.dirname(path))
    logs = (log.SerializeToString() for size in sizes for log in _logs(job, model.rows, names, size))
    count = write_records(path, logs)
    return Warmup(records=count, batch_sizes=tuple(sizes), signatures=tuple(names))


def _logs(job: JobOptions, rows: Mapping[str, np.ndarray], names: Sequence[str], size: int) -> Iterator[Any]:
    inputs = {alias: values[:size] for alias, values in rows.items()}
    yield _predict_log(job.model_name, inputs)
    if CLASSIFY in names:
        yield _classify_log(job.model_name, inputs)


def _predict_log(model_name: str, inputs: Mapping[str, np.ndarray]) -> Any:
    log = messages.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model_name
    request.model_spec.signature_name = PREDICT
    for alias, values in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(values))
    return log


def _classify_log(model_name: str, inputs: Mapping[str, np.ndarray]) -> Any:
    log = messages.PredictionLog()
    request = log.classify_log.request
    request.model_spec.name = model_name
    request.model_spec.signature_name = CLASSIFY
    for i in range(len(next(iter(inputs.values())))):
        request.input.example_list.examples.append(make_example({a: v[i] for a, v in inputs.items()}))
    return log


def read_requests(directory: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Read the warmup records of a version as calls: signature key, and inputs by alias. None when it has no records.

    Raises:
        DataError: a record is damaged, or of a kind that no exporter of ours writes.
    """
    path = os.path.join(directory, WARMUP_PATH)
    if not file.exists(path):
        return
    for payload in read_records(path):
        log = messages.PredictionLog.FromString(payload)
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            request = log.predict_log.request
            yield request.model_spec.signature_name, {a: from_proto(t) for a, t in request.inputs.items()}
        elif kind == "classify_log":
            request = log.classify_log.request
            examples = np.empty(len(request.input.example_list.examples), dtype=object)
            examples[:] = [e.SerializeToString() for e in request.input.example_list.examples]
            yield request.model_spec.signature_name, {CLASSIFY_INPUT: examples}
        else:
            raise DataError(f"{path}: a warmup record of kind {kind}; expected predict_log or classify_log")


def replay(directory: str, artifact: Artifact) -> int:
    """Run a version's warmup records on it, as a server will.

    Returns:
        How many there were.
    """
    count = 0
    for signature, inputs in read_requests(directory):
        artifact.run(signature, inputs)
        count += 1
    return count
