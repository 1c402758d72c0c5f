"""PredictionLog messages: the requests that a server logged, or is to replay before it serves a version.

Source: tensorflow_serving/apis/prediction_log.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import DataError
from moxserve.protocol import messages
from moxserve.protocol.examples import serialized_examples
from moxserve.protocol.tensors import from_proto, to_proto
from moxserve.types import CLASSIFY_METHOD, DEFAULT_SIGNATURE, PREDICT_METHOD, REGRESS_METHOD

__all__ = [
    "EXAMPLES_INPUT",
    "LoggedRequest",
    "examples_log",
    "parse_log",
    "predict_log",
    "request_only",
    "requests_of",
]

# The alias that the examples of a classify or regress request are fed to.
EXAMPLES_INPUT = "inputs"

_EXAMPLE_LOGS = {"classify_log": CLASSIFY_METHOD, "regress_log": REGRESS_METHOD}


@dataclass(frozen=True)
class LoggedRequest:
    """One call of one signature.

    Attributes:
        method: that the request was made for, such as `tensorflow/serving/classify`.
        signature: key; `serving_default` where the request named none.
        inputs: by alias; for classify and regress `inputs`, serialized tf.Examples.
        wanted: the outputs that were asked for; empty for all.
    """

    method: str
    signature: str
    inputs: Mapping[str, np.ndarray]
    wanted: tuple[str, ...] = ()


def parse_log(payload: bytes) -> Any:
    """Read a record.

    Raises:
        DataError: it is no PredictionLog, or one without a request.
    """
    from google.protobuf.message import DecodeError

    try:
        log = messages.PredictionLog.FromString(payload)
    except DecodeError:
        raise DataError(f"{len(payload)} bytes are no PredictionLog") from None
    if log.WhichOneof("log_type") is None:
        raise DataError("a PredictionLog without a request")
    return log


def requests_of(log: Any) -> Iterator[LoggedRequest]:
    """Yield the calls of a PredictionLog: one, or several for a MultiInference request.

    Raises:
        DataError: it is of a kind that no server replays.
        InvalidArgument: a tensor cannot be read, or there are no examples.
    """
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        inputs = {alias: from_proto(proto) for alias, proto in request.inputs.items()}
        yield LoggedRequest(PREDICT_METHOD, _key(request.model_spec), inputs, tuple(request.output_filter))
    elif kind in _EXAMPLE_LOGS:
        request = getattr(log, kind).request
        inputs = {EXAMPLES_INPUT: serialized_examples(request.input)}
        yield LoggedRequest(_EXAMPLE_LOGS[kind], _key(request.model_spec), inputs)
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        inputs = {EXAMPLES_INPUT: serialized_examples(request.input)}
        for task in request.tasks:
            yield LoggedRequest(task.method_name, _key(task.model_spec), inputs)
    else:
        raise DataError(f"a PredictionLog of kind {kind}, which servers do not replay")


def _key(model_spec: Any) -> str:
    return model_spec.signature_name or DEFAULT_SIGNATURE


def request_only(log: Any, model_name: str) -> Any:
    """Return a PredictionLog as a warmup record: without answer and metadata, and for any version of the model.

    Args:
        log: of a request.
        model_name: that it is to carry.
    """
    kind = log.WhichOneof("log_type")
    record = messages.PredictionLog()
    request = getattr(record, kind).request
    request.CopyFrom(getattr(log, kind).request)
    specs = [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]
    for spec in specs:
        spec.name = model_name
        for choice in ("version", "version_label"):
            spec.ClearField(choice)
    return record


def predict_log(model_name: str, signature: str, inputs: Mapping[str, np.ndarray]) -> Any:
    """Make the record of a Predict request."""
    log = messages.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = model_name, signature
    for alias, values in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(values))
    return log


def examples_log(method: str, model_name: str, signature: str, serialized: np.ndarray) -> Any:
    """Make the record of a Classify or Regress request.

    Args:
        method: of the signature.
        model_name: of the model.
        signature: key.
        serialized: [rows] serialized tf.Examples.

    Raises:
        DataError: something else than a tf.Example is among them.
    """
    from google.protobuf.message import DecodeError

    log = messages.PredictionLog()
    request = (log.classify_log if method == CLASSIFY_METHOD else log.regress_log).request
    request.model_spec.name, request.model_spec.signature_name = model_name, signature
    try:
        for one in serialized:
            request.input.example_list.examples.add().MergeFromString(one)
    except DecodeError as error:
        raise DataError(f"a row of signature {signature!r} is no serialized tf.Example: {error}") from None
    return log
