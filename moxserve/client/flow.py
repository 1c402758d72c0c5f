"""What every client does around its transport, written once for sync and async.

Each method is a generator that yields what is to be done (a `Call` for the transport, or a `Pause`) and is sent the
result, or thrown the error. It does no input or output, so `Client` drives it with plain calls and `AsyncClient` with
awaits.

The metadata of a model is fetched once and kept for at most `METADATA_MAX_AGE_S`, so a call costs no second round trip.
A hot reload is noticed three ways: an answer from another version drops the kept metadata; inputs that do not fit are
compared with fresh metadata before they are refused; a server that refuses fitting inputs is asked for its metadata
again, and if the signature has changed the call is fitted and sent once more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from moxserve.client.calls import (
    UNSET,
    Array,
    Call,
    ListCall,
    ListedModel,
    ListReply,
    MetadataCall,
    ModelMetadata,
    PredictCall,
    PredictReply,
    ReloadCall,
    Retry,
    StatusCall,
    Timeout,
    Unset,
    VersionStatus,
)
from moxserve.client.fit import check_outputs, fit_inputs, pick_signature, unchecked_inputs
from moxserve.errors import InvalidArgument, RequestError, ServerUnreachableError, UsageError
from moxserve.types import DEFAULT_SIGNATURE, ModelRef, Signature

__all__ = ["METADATA_MAX_AGE_S", "Flow", "Flows", "Pause", "Settings"]

METADATA_MAX_AGE_S = 30.0
READY_POLL_S = 0.1
# Answers that a changed signature can explain.
_MAYBE_STALE = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


Flow = Generator[Call | Pause, Any, T]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client behaves.

    Attributes:
        timeout_s: seconds for a whole call, repetitions included; None is no limit.
        check: compare inputs with the model's signature before sending.
        retry: when to ask again.
    """

    timeout_s: float | None = 60.0
    check: bool = True
    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        check_timeout(self.timeout_s)


def check_timeout(timeout_s: float | None) -> float | None:
    """Return a timeout.

    Raises:
        UsageError: it is not positive.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"timeout_s={timeout_s!r}: expected seconds above 0, or None for no limit")
    return timeout_s


class _Deadline:
    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Seconds left, never below a millisecond: a call that starts too late fails by its own timeout."""
        return None if self._end is None else max(0.001, self._end - time.monotonic())

    def allows(self, pause_s: float) -> bool:
        return self._end is None or time.monotonic() + pause_s < self._end


@dataclass(slots=True)
class _Kept:
    metadata: ModelMetadata
    fetched: float


class Flows:
    """The flows of one client, with the metadata that it has seen.

    Args:
        settings: how the client behaves.
        needs_signature: the transport cannot read an answer without the signature (REST: names and dtypes).
    """

    def __init__(self, settings: Settings, *, needs_signature: bool = False) -> None:
        self.settings = settings
        self._needs_signature = needs_signature
        self._kept: dict[ModelRef, _Kept] = {}

    def _deadline(self, timeout_s: Timeout) -> _Deadline:
        chosen = self.settings.timeout_s if isinstance(timeout_s, Unset) else check_timeout(timeout_s)
        return _Deadline(chosen)

    def predict(
        self,
        model: str | ModelRef,
        inputs: Any,
        signature: str = DEFAULT_SIGNATURE,
        outputs: Sequence[str] | None = None,
        timeout_s: Timeout = UNSET,
    ) -> Flow[dict[str, Array]]:
        """Fit, send, and keep what the answer tells about the version."""
        ref = model_ref(model)
        call = PredictCall(ref, {}, signature, _names(outputs))
        deadline = self._deadline(timeout_s)
        if self.settings.check or self._needs_signature or not isinstance(inputs, Mapping):
            reply = yield from self._checked(call, inputs, deadline)
        else:
            reply = yield from self._send(replace(call, inputs=unchecked_inputs(inputs)), deadline)
        return dict(reply.outputs)

    def _checked(self, call: PredictCall, inputs: Any, deadline: _Deadline) -> Flow[PredictReply]:
        ref = call.model
        kept = self._fresh_enough(ref)
        metadata = kept or (yield from self._fetch(ref, deadline))
        try:
            ready = self._fit(call, inputs, metadata)
        except UsageError:
            if kept is None:
                raise
            metadata, kept = (yield from self._fetch(ref, deadline)), None
            ready = self._fit(call, inputs, metadata)
        try:
            reply: PredictReply = yield from self._send(ready, deadline)
        except RequestError as error:
            if kept is None or error.status not in _MAYBE_STALE:
                raise
            metadata = yield from self._fetch(ref, deadline)
            if metadata.signatures == kept.signatures:
                raise
            reply = yield from self._send(self._fit(call, inputs, metadata), deadline)
        if reply.version is not None and metadata is not None and reply.version != metadata.version:
            self._kept.pop(ref, None)
        return reply

    def _fit(self, call: PredictCall, inputs: Any, metadata: ModelMetadata) -> PredictCall:
        signature: Signature = pick_signature(metadata.signatures, call.signature_name, str(call.model))
        check_outputs(call.outputs, signature)
        if not self.settings.check:
            named = inputs if isinstance(inputs, Mapping) else {_only_input(signature): inputs}
            return replace(call, inputs=unchecked_inputs(named), signature=signature)
        return replace(call, inputs=fit_inputs(inputs, signature), signature=signature)

    def _fresh_enough(self, ref: ModelRef) -> ModelMetadata | None:
        kept = self._kept.get(ref)
        if kept is None or time.monotonic() - kept.fetched > METADATA_MAX_AGE_S:
            return None
        return kept.metadata

    def _fetch(self, ref: ModelRef, deadline: _Deadline) -> Flow[ModelMetadata]:
        metadata: ModelMetadata = yield from self._send(MetadataCall(ref), deadline)
        self._kept[ref] = _Kept(metadata, time.monotonic())
        return metadata

    def _send(self, call: Call, deadline: _Deadline) -> Flow[Any]:
        retry = self.settings.retry
        for attempt in range(retry.attempts + 1):
            try:
                return (yield replace(call, timeout_s=deadline.left_s()))
            except ServerUnreachableError:
                pause_s = min(retry.pause_s * 2**attempt, retry.max_pause_s) * random.uniform(0.5, 1.0)
                if attempt == retry.attempts or not deadline.allows(pause_s):
                    raise
            yield Pause(pause_s)
        raise RuntimeError("unreachable: the last attempt returns or raises")

    def metadata(self, model: str | ModelRef, timeout_s: Timeout = UNSET) -> Flow[ModelMetadata]:
        """Fetch metadata anew, and keep it for the checks."""
        return (yield from self._fetch(model_ref(model), self._deadline(timeout_s)))

    def status(self, model: str | ModelRef, timeout_s: Timeout = UNSET) -> Flow[list[VersionStatus]]:
        """Ask once, without repetition: a status is wanted as it is now."""
        reply = yield StatusCall(model_ref(model), self._deadline(timeout_s).left_s())
        return list(reply.versions)

    def models(self, timeout_s: Timeout = UNSET) -> Flow[list[ListedModel]]:
        """Ask for the models, and for the states of each where the list does not tell them."""
        deadline = self._deadline(timeout_s)
        try:
            reply: ListReply = yield ListCall(deadline.left_s())
        except RequestError as error:
            raise _unlisted(error) from error
        found = []
        for model in reply.models:
            if model.versions is None:
                try:
                    states = yield StatusCall(ModelRef(model.name), deadline.left_s())
                    model = replace(model, versions=states.versions)
                except RequestError as error:
                    if error.status != "NOT_FOUND":
                        raise
                    model = replace(model, versions=())  # it left meanwhile, or has no version yet
            found.append(model)
        return found

    def reload(self, config: Any, timeout_s: Timeout = UNSET) -> Flow[None]:
        """Send a configuration once: a repetition could undo what another client has set meanwhile."""
        yield ReloadCall(_config_bytes(config), self._deadline(timeout_s).left_s())

    def wait_ready(self, model: str | ModelRef, timeout_s: float | None = 60.0) -> Flow[int]:
        """Ask until a version can answer.

        Raises:
            ServerUnreachableError: the time is over; tells the last thing seen.
        """
        ref = model_ref(model)
        deadline = _Deadline(check_timeout(timeout_s))
        last: RequestError | ServerUnreachableError | None = None
        seen = ""
        while True:
            try:
                version, seen = yield from self._ready_version(ref, deadline)
                if version is not None:
                    return version
                last = None
            except (RequestError, ServerUnreachableError) as error:
                # One that the end of the wait may have cut off tells less than what was seen before.
                if not seen or deadline.allows(READY_POLL_S):
                    seen, last = error.message, error
            if not deadline.allows(READY_POLL_S):
                raise ServerUnreachableError(
                    f"model {str(ref)!r} was not ready within {timeout_s:g} s: {seen}",
                    hint=last.hint if last else "the server's log tells why a version is not loaded",
                ) from last
            yield Pause(READY_POLL_S)

    def _ready_version(self, ref: ModelRef, deadline: _Deadline) -> Flow[tuple[int | None, str]]:
        limit = deadline.left_s()
        limit = 5.0 if limit is None else min(5.0, limit)
        if ref.label is not None:
            # Servers ignore the label in a status request, and honour it here.
            metadata = yield MetadataCall(ref, limit)
            return metadata.version or 0, ""
        reply = yield StatusCall(ref, limit)
        for found in reply.versions:
            if found.state == "AVAILABLE" and ref.version in (None, found.version):
                return found.version, ""
        return None, "; ".join(str(v) for v in reply.versions) or "it has no versions"


def _only_input(signature: Signature) -> str:
    if len(signature.inputs) != 1:
        raise UsageError(
            f"a bare array fits a signature with one input; this one has {len(signature.inputs)}",
            hint=f"expected {signature}",
        )
    return next(iter(signature.inputs))


def _unlisted(error: RequestError) -> RequestError:
    """TensorFlow Serving lists nothing: over gRPC it has no such method, over REST it asks for a name."""
    if error.status != "UNIMPLEMENTED" and "Missing model name" not in error.message:
        return error
    return RequestError(
        f"{error.target} does not list its models",
        status="UNIMPLEMENTED",
        target=error.target,
        hint="only moxserve does (REST /v1/models, gRPC RepositoryIndex); ask for models by name",
    )


def _config_bytes(config: Any) -> bytes:
    if not isinstance(config, str):
        data: bytes = config.SerializeToString()
        return data
    from google.protobuf import text_format

    from moxserve.protocol import messages

    try:
        return _config_bytes(messages.parse_text(config, messages.ModelServerConfig()))
    except text_format.ParseError as error:
        raise UsageError(f"the text is no tensorflow.serving.ModelServerConfig: {error}") from None


def _names(outputs: Sequence[str] | None) -> Sequence[str] | None:
    """Refuse a single text, which is a sequence of letters, and read an empty sequence as "all"."""
    if isinstance(outputs, str):
        raise UsageError(f"outputs={outputs!r}: expected a list of names, as in outputs=[{outputs!r}]")
    return list(outputs) if outputs else None


def model_ref(model: str | ModelRef) -> ModelRef:
    """Read `NAME`, `NAME:VERSION` or `NAME@LABEL`.

    Raises:
        UsageError: it is none of those.
    """
    if isinstance(model, ModelRef):
        return model
    try:
        return ModelRef.parse(model)
    except InvalidArgument as error:
        raise UsageError(error.message) from None
