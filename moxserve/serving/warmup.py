"""Replays recorded requests on a version before it takes traffic, so that its first real request is not the slow one.

`<version>/assets.extra/tf_serving_warmup_requests` is a TFRecord of PredictionLog messages. The requests in them are
run in order, always on the version being loaded, whatever model and version they name. A request that fails fails the
load: better no new version than one that cannot answer what its own author recorded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

from google.protobuf.message import DecodeError

from moxserve import file
from moxserve.errors import DataError, DataLoss, InvalidArgument, Unimplemented
from moxserve.export.manifest import MAX_WARMUP_RECORDS
from moxserve.export.manifest import WARMUP_PATH as WARMUP_FILE
from moxserve.protocol import messages
from moxserve.protocol.examples import serialized_examples
from moxserve.protocol.tensors import from_proto
from moxserve.protocol.tfrecord import read_records
from moxserve.serving.classify import Task, classify_on, infer_together, regress_on
from moxserve.serving.dataplane import predict_on
from moxserve.serving.execution import RequestContext
from moxserve.serving.metrics import ServingMetrics, status_of
from moxserve.serving.servable import Servable
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["MAX_RECORDS", "WARMUP_FILE", "replay"]

logger = logging.getLogger(__name__)

MAX_RECORDS = MAX_WARMUP_RECORDS

Run = Callable[[], Coroutine[Any, Any, object]]


def replay(
    servable: Servable,
    call: Callable[[Coroutine[Any, Any, object]], object],
    iterations: int = 1,
    metrics: ServingMetrics | None = None,
    *,
    check_methods: bool = False,
) -> int:
    """Run the recorded requests of a version.

    Args:
        servable: the version; the records lie in its directory.
        call: runs a coroutine on the event loop and waits for it.
        iterations: how often each record is run; below 1 counts as 1.
        metrics: where the replay is counted; None for nowhere.
        check_methods: as of `DataPlane`.

    Returns:
        How many records were read; 0 when there is no such file.

    Raises:
        DataLoss: the file is no TFRecord.
        InvalidArgument: a record is no PredictionLog, or there are too many.
        Unimplemented: a record is of a kind that cannot be replayed.
        ServingError: a request failed.
    """
    path = os.path.join(servable.directory, WARMUP_FILE)
    if not file.exists(path):
        logger.info("No warmup data file found at %s", path)
        return 0
    began, count, skipped, status = time.monotonic(), 0, 0, "OK"
    try:
        for payload in read_records(path):
            count += 1
            run = _request(servable, payload, check_methods, path)
            if run is None:
                skipped += 1
                continue
            for _ in range(max(1, iterations)):
                call(run())
            if count > MAX_RECORDS:
                raise InvalidArgument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
    except DataError as error:
        status = "DATA_LOSS"
        raise DataLoss(f"{error.message}. Please verify your warmup data is in TFRecord format.") from None
    except Exception as error:
        status = status_of(error)
        raise
    finally:
        if metrics is not None:
            metrics.warmup(servable.path, status, count, time.monotonic() - began)
    if skipped:
        logger.info("%d warmup records are for signatures that %s does not serve", skipped, servable.backend.variant)
    logger.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.", servable.path, count, (time.monotonic() - began) * 1e6,
    )  # fmt: skip
    return count


def _request(servable: Servable, payload: bytes, check: bool, path: str) -> Run | None:
    """Return what runs the request of a record; None for one that this form of the model does not serve."""
    try:
        log = messages.PredictionLog.FromString(payload)
    except DecodeError:
        raise InvalidArgument(f"Failed to parse warmup record: {payload[:64]!r} from {path}") from None
    kind = log.WhichOneof("log_type")
    if kind is None:
        return _nothing
    request: Any = getattr(getattr(log, kind), "request", None)
    if request is not None and not _served(servable, kind, request):
        return None
    if kind == "predict_log":
        return _predict(servable, request, check)
    if kind in ("classify_log", "regress_log"):
        infer = classify_on if kind == "classify_log" else regress_on
        name = request.model_spec.signature_name
        return lambda: infer(
            servable, name, lambda: serialized_examples(request.input), RequestContext(), check_method=check
        )
    if kind == "multi_inference_log":
        tasks = [Task(t.model_spec.name, t.model_spec.signature_name, t.method_name) for t in request.tasks]
        return lambda: infer_together(
            servable, tasks, lambda: serialized_examples(request.input), RequestContext(), check_method=check
        )
    number = messages.PredictionLog.DESCRIPTOR.fields_by_name[kind].number
    raise Unimplemented(f"Unsupported log_type for warmup: {number} ({kind})")


def _served(servable: Servable, kind: str, request: Any) -> bool:
    """Tell whether the backend has the signatures of a record.

    A version's records are for its SavedModel. A variant that the server was told to take (`--backend`) may have fewer
    signatures, and is no less right for it.
    """
    if servable.backend.platform == "tensorflow":
        return True
    specs = [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]
    return all((spec.signature_name or DEFAULT_SIGNATURE) in servable.backend.signatures for spec in specs)


def _predict(servable: Servable, request: Any, check: bool) -> Run:
    inputs = {alias: from_proto(proto) for alias, proto in request.inputs.items()}
    name, wanted = request.model_spec.signature_name, list(request.output_filter)
    return lambda: predict_on(servable, name, lambda _: inputs, wanted, check_method=check)


async def _nothing() -> None:
    """Run an empty record."""
