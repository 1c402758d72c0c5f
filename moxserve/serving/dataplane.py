"""Answers requests. Every transport calls this, so that models, versions, checks and statuses are decided once.

A transport reads its own wire format, awaits a method here on the server's event loop, writes the answer, and maps a
ServingError to its own status.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import Internal, NotFound
from moxserve.protocol import messages
from moxserve.protocol.status import ModelListing
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.classify import (
    Classification,
    Inferred,
    ReadExamples,
    Regression,
    Task,
    classify_on,
    infer_together,
    regress_on,
)
from moxserve.serving.execution.context import RequestContext
from moxserve.serving.manager import Manager, VersionStatus
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.observe import RequestRecord
from moxserve.serving.observe.current import current_record
from moxserve.serving.request_log import RequestLogs
from moxserve.serving.servable import Servable
from moxserve.types import CLASSIFY_METHOD, PREDICT_METHOD, REGRESS_METHOD, ModelRef, Signature

__all__ = ["DataPlane", "Decode", "Metadata", "Prediction"]

_METHODS = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)

Decode = Callable[[CallSignature], "Mapping[str, np.ndarray] | Awaitable[Mapping[str, np.ndarray]]"]

_NO_CONTEXT = RequestContext()


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
        platform: name of the runtime.
        variant: which form of the model the runtime runs; empty when the version has only one.
        signatures: what can be called, by key.
    """

    name: str
    version: int
    signature_defs: Any
    platform: str
    variant: str
    signatures: Mapping[str, Signature]


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

    async def predict(
        self,
        ref: ModelRef,
        signature_name: str,
        decode: Decode,
        output_filter: Sequence[str] = (),
        context: RequestContext = _NO_CONTEXT,
    ) -> Prediction:
        """Run a signature of a model.

        Args:
            ref: which model and version.
            signature_name: key; empty for `serving_default`.
            decode: reads the inputs, once model and signature are known, and gives them or promises them; its errors
                go to the caller.
            output_filter: outputs to compute; empty for all.
            context: how long the caller waits.

        Raises:
            NotFound: no such model or version is available.
            SignatureNotFound: it has no such signature.
            InvalidArgument: the inputs or the filter do not fit the signature, or the graph refuses them.
            Internal: the signature is of an unknown method, and methods are checked.
            ServingError: the model failed.
        """
        sample, record = self._logs.sampled(ref.name), _record_of(ref)
        with self._manager.borrow(ref) as servable:
            decode = sample.keep(decode) if sample else decode
            prediction = await predict_on(
                servable, signature_name, decode, output_filter, context, check_method=self._check_methods
            )
            self._metrics.run(servable.name, "Predict", servable.backend.platform, prediction.run_s)
        if record is not None:
            record.answered(prediction.version, prediction.signature, prediction.run_s)
        if sample:
            sample.predict(prediction, output_filter)
        return prediction

    async def classify(
        self, ref: ModelRef, signature_name: str, examples: ReadExamples, context: RequestContext = _NO_CONTEXT
    ) -> Inferred[Classification]:
        """Run a classify signature; see `moxserve.serving.classify.classify_on`.

        Raises:
            NotFound: no such model or version is available.
            ServingError: as of `classify_on`.
        """
        sample, record = self._logs.sampled(ref.name), _record_of(ref)
        with self._manager.borrow(ref) as servable:
            examples = sample.keep(examples) if sample else examples
            inferred = await classify_on(servable, signature_name, examples, context, check_method=self._check_methods)
            self._metrics.run(servable.name, "Classify", servable.backend.platform, inferred.run_s)
        if record is not None:
            record.answered(inferred.version, inferred.signature, inferred.run_s)
        if sample:
            sample.classify(inferred)
        return inferred

    async def regress(
        self, ref: ModelRef, signature_name: str, examples: ReadExamples, context: RequestContext = _NO_CONTEXT
    ) -> Inferred[Regression]:
        """Run a regress signature; see `classify`."""
        sample, record = self._logs.sampled(ref.name), _record_of(ref)
        with self._manager.borrow(ref) as servable:
            examples = sample.keep(examples) if sample else examples
            inferred = await regress_on(servable, signature_name, examples, context, check_method=self._check_methods)
            self._metrics.run(servable.name, "Regress", servable.backend.platform, inferred.run_s)
        if record is not None:
            record.answered(inferred.version, inferred.signature, inferred.run_s)
        if sample:
            sample.regress(inferred)
        return inferred

    async def multi_inference(
        self, ref: ModelRef, tasks: Sequence[Task], examples: ReadExamples, context: RequestContext = _NO_CONTEXT
    ) -> list[Inferred[Classification | Regression]]:
        """Run several signatures on the same examples; see `moxserve.serving.classify.infer_together`.

        Raises:
            NotFound: no such model or version is available.
            ServingError: as of `infer_together`.
        """
        sample, record = self._logs.sampled(ref.name), _record_of(ref)
        with self._manager.borrow(ref) as servable:
            examples = sample.keep(examples) if sample else examples
            answers = await infer_together(servable, tasks, examples, context, check_method=self._check_methods)
            self._metrics.run(servable.name, "MultiInference", servable.backend.platform, answers[0].run_s)
            self._metrics.examples(servable.name, answers[0].examples)
        if record is not None:
            record.answered(answers[0].version, ",".join(a.signature for a in answers), answers[0].run_s)
        if sample:
            sample.multi_inference(tasks, answers)
        return answers

    def metadata(self, ref: ModelRef) -> Metadata:
        """Tell the signatures of a version.

        Raises:
            NotFound: no such model or version is available.
        """
        _record_of(ref)
        with self._manager.borrow(ref) as servable:
            backend = servable.backend
            variant = getattr(backend, "variant", "")
            return Metadata(
                servable.name, servable.version, backend.signature_defs, backend.platform, variant, backend.signatures
            )

    def status_response(self, ref: ModelRef) -> Any:
        """Tell the states of a model's versions, highest first, or of the one that is asked for.

        A label is not looked at: all versions are told, as tensorflow_model_server does.

        Returns:
            A GetModelStatusResponse message.

        Raises:
            NotFound: nothing is known of them.
        """
        _record_of(ref)
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
        return self._manager.answering()

    def ready(self) -> bool:
        """Tell whether requests can be answered: the start is over; a model has a version, or none is configured."""
        models = self.available()
        return self._manager.started_up and (not models or any(models.values()))

    def models(self) -> list[ModelListing]:
        """List the models of the configuration, in its order, each with all its versions."""
        return [
            ModelListing(config.name, config.labels, _status_response(self._manager.statuses(config.name)))
            for config in self._manager.configs()
        ]


def _record_of(ref: ModelRef) -> RequestRecord | None:
    """Note the model in the record of this request, if there is one, and return it."""
    record = current_record()
    if record is not None:
        record.model = ref.name
    return record


def _status_response(statuses: Sequence[VersionStatus]) -> Any:
    response = messages.GetModelStatusResponse()
    for status in statuses:
        entry = response.model_version_status.add(version=status.version, state=int(status.state))
        entry.status.error_code = status.error.grpc_code if status.error else 0
        entry.status.error_message = status.error.message if status.error else ""
    return response


async def predict_on(
    servable: Servable,
    signature_name: str,
    decode: Decode,
    output_filter: Sequence[str] = (),
    context: RequestContext = _NO_CONTEXT,
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
    if not isinstance(inputs, Mapping):
        inputs = await inputs
    names = call.match_outputs(output_filter)
    context.check()
    began = time.perf_counter()
    outputs = await servable.runner.run(call.signature.name, inputs, names, context)
    run_s = time.perf_counter() - began
    return Prediction(servable.name, servable.version, call.signature.name, outputs, run_s)
