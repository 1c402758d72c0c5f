"""The client for plain, blocking code. `async_client.py` is its twin."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from moxserve.client.calls import (
    UNSET,
    Array,
    Call,
    ListedModel,
    ModelMetadata,
    Reply,
    Retry,
    Timeout,
    VersionStatus,
)
from moxserve.client.flow import Flow, Flows, Pause, Settings
from moxserve.client.transport import Transport, parse_target, transport_for
from moxserve.errors import ClientError, MoxserveError
from moxserve.types import DEFAULT_SIGNATURE, ModelRef

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Talks to a model server or to a model on disk. May be shared by threads.

    Args:
        target: `grpc://HOST:PORT`, `HOST:PORT` (gRPC), `http://HOST:PORT` (REST), `local:DIR` or a model directory; or
            a transport, such as `MockTransport` in a test.
        timeout_s: seconds for each call, repetitions included; None is no limit.
        check: compare names, dtypes and shapes with the model's signature before sending. The signature is fetched
            once, not for each call. Without the check, arrays go out as they are.
        retry: how a server that does not answer is asked again; `Retry(attempts=0)` turns that off.

    Raises:
        UsageError: the target or a setting is wrong. Nothing is connected before the first call.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Transport,
        *,
        timeout_s: float | None = 60.0,
        check: bool = True,
        retry: Retry = Retry(),  # noqa: B008 - frozen
    ) -> None:
        self._transport = transport_for(parse_target(target)) if isinstance(target, (str, os.PathLike)) else target
        needs_signature = getattr(self._transport, "needs_signature", False)
        self._flows = Flows(Settings(timeout_s, check, retry), needs_signature=needs_signature)
        self._closed = False

    @property
    def target(self) -> str:
        """The address, as messages show it."""
        return self._transport.target

    def predict(
        self,
        model: str | ModelRef,
        inputs: Any,
        *,
        signature: str = DEFAULT_SIGNATURE,
        outputs: Sequence[str] | None = None,
        timeout_s: Timeout = UNSET,
    ) -> dict[str, Array]:
        """Ask a model for its outputs.

        Args:
            model: `NAME`, `NAME:VERSION` or `NAME@LABEL`.
            inputs: arrays (or nested lists) by input name; or one array, when the signature has one input.
            signature: key of the signature.
            outputs: names of the outputs wanted; None means all.
            timeout_s: seconds for this call; None is no limit; unset is the client's.

        Returns:
            Arrays by output name, of the model's dtypes; strings as object arrays of bytes.

        Raises:
            UsageError: a name, dtype or shape does not fit the signature, which the message shows. Nothing was sent.
            ServerUnreachableError: nobody answers, or the server is not ready.
            RequestError: the server refused, or did not answer in time (`status == "DEADLINE_EXCEEDED"`).
        """
        return self._drive(self._flows.predict(model, inputs, signature, outputs, timeout_s))

    def metadata(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> ModelMetadata:
        """Fetch a model's version and signatures, always anew.

        Raises:
            ServerUnreachableError: nobody answers.
            RequestError: the server refused; status `NOT_FOUND` when it has no such model.
        """
        return self._drive(self._flows.metadata(model, timeout_s))

    def status(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> list[VersionStatus]:
        """Fetch the states of a model's versions, highest version first.

        Raises:
            ServerUnreachableError: nobody answers.
            RequestError: the server refused; status `NOT_FOUND` when it has no such model.
        """
        return self._drive(self._flows.status(model, timeout_s))

    def models(self, *, timeout_s: Timeout = UNSET) -> list[ListedModel]:
        """Fetch the models of a server, each with the states of its versions.

        Raises:
            ServerUnreachableError: nobody answers.
            RequestError: the server refused; status `UNIMPLEMENTED` when it lists no models, as TensorFlow Serving.
        """
        return self._drive(self._flows.models(timeout_s))

    def reload(self, config: Any, *, timeout_s: Timeout = UNSET) -> None:
        """Have a server serve other models; over gRPC only. Returns when the new ones answer.

        Args:
            config: a ModelServerConfig, as text or as a message. It is the whole truth: a model that it leaves out is
                unloaded.
            timeout_s: seconds for the change, the load of new models included; None is no limit.

        Raises:
            UsageError: the text is no ModelServerConfig, or this is no gRPC target.
            ServerUnreachableError: nobody answers.
            RequestError: the server refused the configuration, or one of its models failed to load.
        """
        self._drive(self._flows.reload(config, timeout_s))

    def wait_ready(self, model: str | ModelRef, timeout_s: float | None = 60.0) -> int:
        """Wait until a version of a model can answer.

        Args:
            model: with a version or label, that one is waited for.
            timeout_s: how long; None is no limit.

        Returns:
            The version.

        Raises:
            ServerUnreachableError: the time is over; the message tells what was seen last.
        """
        return self._drive(self._flows.wait_ready(model, timeout_s))

    def _drive(self, flow: Flow[T]) -> T:
        if self._closed:
            raise ClientError(f"the client of {self.target} is closed")
        try:
            step = next(flow)
            while True:
                try:
                    result = self._step(step)
                except MoxserveError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _step(self, step: Call | Pause) -> Reply | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        return self._transport.handle(step)

    def close(self) -> None:
        """Release the connections; harmless when done before."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.target!r}{', closed' if self._closed else ''})"
