"""Sees to it that a running server serves a version that was just published: `--push HOST:PORT`.

A server of TensorFlow Serving's API looks into its base paths by itself, every second unless it is told otherwise; a
request to reload would need its whole configuration, which it tells nobody, and would unload what is left out. So the
server is asked for the state of the version until that is AVAILABLE, or until it is known that it will not be.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moxserve.errors import ClientError, MoxserveError, RequestError, ServerUnreachableError, UsageError, did_you_mean

if TYPE_CHECKING:
    from moxserve.client import Client, VersionStatus

__all__ = ["DEFAULT_TIMEOUT_S", "push_target", "push_version"]

DEFAULT_TIMEOUT_S = 300.0
_PORT = 8500
_NAME_HINT = "call the model as the server does: --model-name"
_LOOK_S = 0.1
_LOOK_MAX_S = 1.0
_CALL_S = 5.0
# A version that failed before and was published again stays failed in the server's eyes until it looks.
_SETTLE_S = 3.0


def push_target(address: str) -> str:
    """Turn `HOST`, `HOST:PORT` (gRPC), `grpc://…` or `http://…` (REST) into a target of `moxserve.client`.

    Args:
        address: as a user gives it; port 8500 where none is given.

    Raises:
        UsageError: it is no address.
    """
    from moxserve.client.transport import parse_target

    text = address.strip()
    if "://" not in text and not text.startswith("unix:"):
        if not text or "/" in text or text.startswith("local:"):
            raise UsageError(f"--push {address!r}: expected HOST:PORT (gRPC) or http://HOST:PORT (REST)")
        bare = text.rpartition("]")[2] if text.startswith("[") else text
        text = f"grpc://{text}" if ":" in bare else f"grpc://{text}:{_PORT}"
    parse_target(text)
    return text


def push_version(address: str, model_name: str, version: int | str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> float:
    """Wait until a server serves a version.

    Args:
        address: of the server, as for `push_target`.
        model_name: what the server calls the model.
        version: that was published.
        timeout_s: how long to wait.

    Returns:
        Seconds until the version was available.

    Raises:
        UsageError: the address is none, or the version is a name, which no server looks for.
        ServerUnreachableError: nobody answers there.
        ClientError: the server does not serve the version; the message tells its reason.
    """
    from moxserve.client import Client

    target = push_target(address)
    if not isinstance(version, int):
        raise UsageError(
            f"version {version!r} is published, but servers look for numbers only", hint="export with --version -1"
        )
    with Client(target, timeout_s=_CALL_S) as client:
        return _Waiting(client, model_name, version, timeout_s).run()


class _Waiting:
    """Looks at a version's state until that is decided."""

    def __init__(self, client: Client, model_name: str, version: int, timeout_s: float) -> None:
        self._client = client
        self._model = model_name
        self._version = version
        self._began = time.monotonic()
        self._timeout_s = timeout_s
        self._answered = False
        self._failing_since: float | None = None
        self._seen = "nothing"

    def run(self) -> float:
        pause_s = _LOOK_S
        while not self._is_served():
            if self._took_s() + pause_s > self._timeout_s:
                raise self._failure(f"does not serve it after {self._timeout_s:g} s: {self._seen}")
            time.sleep(pause_s)
            pause_s = min(_LOOK_MAX_S, pause_s * 1.5)
        return self._took_s()

    def _took_s(self) -> float:
        return time.monotonic() - self._began

    def _is_served(self) -> bool:
        """Look once; what a later look may find otherwise is only noted."""
        try:
            versions = self._client.status(self._model)
        except ServerUnreachableError as error:
            if not self._answered:
                error.message = f"{self._published()}, but the server cannot be asked: {error.message}"
                error.args = (error.message,)
                raise
            self._seen = error.message  # it may be starting again
            return False
        except RequestError as error:
            if error.status == "DEADLINE_EXCEEDED" and self._answered:
                self._seen = error.message  # it is busy, with loading perhaps
                return False
            if error.status != "NOT_FOUND":
                raise self._failure(f"refuses to tell: {error.message}", error.hint) from error
            self._check_listed()
            self._seen = error.message
            versions = []
        self._answered = True
        return self._judge(versions)

    def _judge(self, versions: Sequence[VersionStatus]) -> bool:
        if versions:
            self._seen = "; ".join(str(known) for known in versions)
        state = next((known for known in versions if known.version == self._version), None)
        # A failed load that is going to be tried again is told as LOADING with an error.
        if state is None or (state.state != "END" and state.error_code == "OK") or state.state == "AVAILABLE":
            self._failing_since = None
            return state is not None and state.state == "AVAILABLE"
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since < _SETTLE_S:
            return False
        if state.error_code == "OK":
            raise self._failure(f"has unloaded it: {self._seen}", "its version policy decides which versions it serves")
        raise self._failure(f"could not load it: {state.error_code}: {state.error_message}")

    def _check_listed(self) -> None:
        """Tell at once when the server has no model of this name, where it tells its models."""
        if self._answered:
            return
        with contextlib.suppress(RequestError, ServerUnreachableError):
            names = [model.name for model in self._client.models()]
            if self._model not in names:
                raise self._failure(f"has no model {self._model!r}; {did_you_mean(self._model, names)}", _NAME_HINT)

    def _published(self) -> str:
        return f"version {self._version} of {self._model!r} is published"

    def _failure(self, what: str, hint: str | None = None) -> MoxserveError:
        default = "does its base path lead to where the version was published, and does it look there again and again?"
        return ClientError(f"{self._published()}, but {self._client.target} {what}", hint=hint or default)
