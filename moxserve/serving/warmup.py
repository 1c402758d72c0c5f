"""Replays recorded requests on a version before it takes traffic, so that its first real request is not the slow one.

`<version>/assets.extra/tf_serving_warmup_requests` is a TFRecord of PredictionLog messages. The requests in them are
run in order, always on the version being loaded, whatever model and version they name. A request that fails fails the
load: better no new version than one that cannot answer what its own author recorded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from moxserve import file
from moxserve.errors import DataError, DataLoss, InvalidArgument, Unimplemented
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto
from moxserve.protocol.tfrecord import read_records
from moxserve.serving.dataplane import predict_on
from moxserve.serving.servable import Servable

__all__ = ["MAX_RECORDS", "WARMUP_FILE", "replay"]

logger = logging.getLogger(__name__)

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000


def replay(servable: Servable, iterations: int = 1) -> int:
    """Run the recorded requests of a version.

    Args:
        servable: the version; the records lie in its directory.
        iterations: how often each record is run; below 1 counts as 1.

    Returns:
        How many records were read; 0 when there is no such file.

    Raises:
        DataLoss: the file is no TFRecord.
        InvalidArgument: a record is no PredictionLog, or there are too many.
        Unimplemented: a record is of a kind that cannot be replayed.
        ServingError: a request failed.
    """
    path = os.path.join(servable.path, WARMUP_FILE)
    if not file.exists(path):
        logger.info("No warmup data file found at %s", path)
        return 0
    began, count = time.monotonic(), 0
    try:
        for payload in read_records(path):
            count += 1
            _replay_record(servable, payload, max(1, iterations), path)
            if count > MAX_RECORDS:
                raise InvalidArgument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
    except DataError as error:
        raise DataLoss(f"{error.message}. Please verify your warmup data is in TFRecord format.") from None
    logger.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.", servable.path, count, (time.monotonic() - began) * 1e6,
    )  # fmt: skip
    return count


def _replay_record(servable: Servable, payload: bytes, iterations: int, path: str) -> None:
    try:
        log = messages.PredictionLog.FromString(payload)
    except DecodeError:
        raise InvalidArgument(f"Failed to parse warmup record: {payload[:64]!r} from {path}") from None
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind == "predict_log":
        _run_predict(servable, log.predict_log.request, iterations)
    elif kind in ("classify_log", "regress_log"):
        request = getattr(log, kind).request
        _run_examples(servable, request.input, [request.model_spec.signature_name], iterations)
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        _run_examples(servable, request.input, [t.model_spec.signature_name for t in request.tasks], iterations)
    else:
        number = messages.PredictionLog.DESCRIPTOR.fields_by_name[kind].number
        raise Unimplemented(f"Unsupported log_type for warmup: {number} ({kind})")


def _run_predict(servable: Servable, request: Any, iterations: int) -> None:
    inputs = {alias: from_proto(proto) for alias, proto in request.inputs.items()}
    for _ in range(iterations):
        predict_on(servable, request.model_spec.signature_name, lambda _: inputs, request.output_filter)


def _run_examples(servable: Servable, message: Any, signature_names: Sequence[str], iterations: int) -> None:
    examples = serialized_examples(message)
    for _ in range(iterations):
        for name in signature_names:
            predict_on(servable, name, lambda call: dict.fromkeys(call.input_names, examples))


def serialized_examples(message: Any) -> np.ndarray:
    """Return the examples of an Input message as a 1-D array of bytes.

    With a context, each element is the bytes of the context followed by those of the example: protobuf merges the two,
    and a feature that both have is the example's.

    Raises:
        InvalidArgument: there is no example.
    """
    kind = message.WhichOneof("kind")
    listed = getattr(message, kind) if kind else None
    if listed is None or not listed.examples:
        raise InvalidArgument("Input is empty.")
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    examples = np.empty(len(listed.examples), dtype=object)
    examples[:] = [context + example.SerializeToString() for example in listed.examples]
    return examples
