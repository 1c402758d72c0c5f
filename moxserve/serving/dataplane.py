"""Answers requests. Every transport calls this, so that models, versions, checks and statuses are decided once.

A transport reads its own wire format, calls a method here, writes the answer, and maps a ServingError to its own
status.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import Internal, NotFound
from moxserve.protocol import messages
from moxserve.protocol.status import ModelListing
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.classify import (
    CLASSIFY,
    REGRESS,
    Classification,
    Inferred,
    ReadExamples,
    Regression,
    Task,
    classify_on,
    infer_together,
    regress_on,
)
from moxserve.serving.manager import Manager, VersionStatus
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.policy import State
from moxserve.serving.request_log import RequestLogs
from moxserve.serving.servable import Servable
from moxserve.types import ModelRef

__all__ = ["DataPlane", "Decode", "Metadata", "Prediction"]

_METHODS = ("tensorflow/serving/predict", CLASSIFY, REGRESS)

Decode = Callable[[CallSignature], Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model.

    Attributes:
        name: of the model, as asked for.
        version: that answered.
        signature: key of the signature that was run.
        outputs: by alias.
        run_s: how long the model itself ran, in s.
    """

    name: str
    version: int
    signature: str
    outputs: Mapping[str, np.ndarray]
    run_s: float


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a version can do.

    Attributes:
        name: of the model.
        version: that was looked at.
        signature_defs: SignatureDefMap message.
    """

    name: str
    version: int
    signature_defs: Any


class DataPlane:
    """The core behind all transports.

    Args:
        manager: that lends versions.
        logs: where a share of the requests is kept; None for nowhere.
        metrics: where runs of models are counted; None for nowhere that can be seen.
        check_methods: whether a signature must say that it is of the method that is asked for. Off, as by default in
            tensorflow_model_server: all signatures of TF2 say that they are of predict.
    """

    def __init__(
        self,
        manager: Manager,
        logs: RequestLogs | None = None,
        metrics: ServingMetrics | None = None,
        *,
        check_methods: bool = False,
    ) -> None:
        self._manager = manager
        self._metrics = metrics or ServingMetrics()
        self._logs = logs or RequestLogs()
        self._check_methods = check_methods

    def predict(
        self, ref: ModelRef, signature_name: str, decode: Decode, output_filter: Sequence[str] = ()
    ) -> Prediction:
        """Run a signature of a model.

        Args:
            ref: which model and version.
            signature_name: key; empty for `serving_default`.
            decode: reads the inputs, once model and signature are known; its errors go to the caller.
            output_filter: outputs to compute; empty for all.

        Raises:
            NotFound: no such model or version is available.
            SignatureNotFound: it has no such signature.
            InvalidArgument: the inputs or the filter do not fit the signature, or the graph refuses them.
            Internal: the signature is of an unknown method, and methods are checked.
            ServingError: the model failed.
        """
        sample = self._logs.sampled(ref.name)
        with self._manager.borrow(ref) as servable:
            decode = sample.keep(decode) if sample else decode
            prediction = predict_on(servable, signature_name, decode, output_filter, check_method=self._check_methods)
            self._metrics.run(servable.name, "Predict", servable.backend.platform, prediction.run_s)
        if sample:
            sample.predict(prediction, output_filter)
        return prediction

    def classify(self, ref: ModelRef, signature_name: str, examples: ReadExamples) -> Inferred[Classification]:
        """Run a classify signature; see `moxserve.serving.classify.classify_on`.

        Raises:
            NotFound: no such model or version is available.
            ServingError: as of `classify_on`.
        """
        sample = self._logs.sampled(ref.name)
        with self._manager.borrow(ref) as servable:
            examples = sample.keep(examples) if sample else examples
            inferred = classify_on(servable, signature_name, examples, check_method=self._check_methods)
            self._metrics.run(servable.name, "Classify", servable.backend.platform, inferred.run_s)
        if sample:
            sample.classify(inferred)
        return inferred

    def regress(self, ref: ModelRef, signature_name: str, examples: ReadExamples) -> Inferred[Regression]:
        """Run a regress signature; see `classify`."""
        sample = self._logs.sampled(ref.name)
        with self._manager.borrow(ref) as servable:
            examples = sample.keep(examples) if sample else examples
            inferred = regress_on(servable, signature_name, examples, check_method=self._check_methods)
            self._metrics.run(servable.name, "Regress", servable.backend.platform, inferred.run_s)
        if sample:
            sample.regress(inferred)
        return inferred

    def multi_inference(
        self, ref: ModelRef, tasks: Sequence[Task], examples: ReadExamples
    ) -> list[Inferred[Classification | Regression]]:
        """Run several signatures on the same examples; see `moxserve.serving.classify.infer_together`.

        Raises:
            NotFound: no such model or version is available.
            ServingError: as of `infer_together`.
        """
        sample = self._logs.sampled(ref.name)
        with self._manager.borrow(ref) as servable:
            examples = sample.keep(examples) if sample else examples
            answers = infer_together(servable, tasks, examples, check_method=self._check_methods)
            self._metrics.run(servable.name, "MultiInference", servable.backend.platform, answers[0].run_s)
            self._metrics.examples(servable.name, answers[0].examples)
        if sample:
            sample.multi_inference(tasks, answers)
        return answers

    def metadata(self, ref: ModelRef) -> Metadata:
        """Tell the signatures of a version.

        Raises:
            NotFound: no such model or version is available.
        """
        with self._manager.borrow(ref) as servable:
            return Metadata(servable.name, servable.version, servable.backend.signature_defs)

    def status_response(self, ref: ModelRef) -> Any:
        """Tell the states of a model's versions, highest first, or of the one that is asked for.

        A label is not looked at: all versions are told, as tensorflow_model_server does.

        Returns:
            A GetModelStatusResponse message.

        Raises:
            NotFound: nothing is known of them.
        """
        known = self._manager.statuses(ref.name)
        if ref.version is not None:
            known = [status for status in known if status.version == ref.version]
            if not known:
                raise NotFound(f"Could not find version {ref.version} of model {ref.name}")
        if not known:
            raise NotFound(f"Could not find any versions of model {ref.name}")
        return _status_response(known)

    def available(self) -> dict[str, bool]:
        """Tell of each model of the configuration whether it has a version that answers."""
        return {
            config.name: any(status.state is State.AVAILABLE for status in self._manager.statuses(config.name))
            for config in self._manager.configs()
        }

    def models(self) -> list[ModelListing]:
        """List the models of the configuration, in its order, each with all its versions."""
        return [
            ModelListing(config.name, config.labels, _status_response(self._manager.statuses(config.name)))
            for config in self._manager.configs()
        ]


def _status_response(statuses: Sequence[VersionStatus]) -> Any:
    response = messages.GetModelStatusResponse()
    for status in statuses:
        entry = response.model_version_status.add(version=status.version, state=int(status.state))
        entry.status.error_code = status.error.grpc_code if status.error else 0
        entry.status.error_message = status.error.message if status.error else ""
    return response


def predict_on(
    servable: Servable,
    signature_name: str,
    decode: Decode,
    output_filter: Sequence[str] = (),
    *,
    check_method: bool = False,
) -> Prediction:
    """Run a signature of a version in hand; see `DataPlane.predict`."""
    call = servable.call(signature_name)
    if check_method and call.signature.method not in _METHODS:
        raise Internal(
            f"Expected prediction signature method_name to be one of {{{', '.join(_METHODS)}}}. "
            f"Was: {call.signature.method}"
        )
    inputs = decode(call)
    names = call.match_outputs(output_filter)
    began = time.perf_counter()
    outputs = servable.backend.run(call.signature.name, inputs, names)
    run_s = time.perf_counter() - began
    return Prediction(servable.name, servable.version, call.signature.name, outputs, run_s)
