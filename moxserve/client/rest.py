"""The REST transports. The only module of the client that imports httpx2, and only when one is made."""

from __future__ import annotations

from typing import Any

import httpx2

from moxserve.client.bodies import (
    decode_json,
    decode_list,
    decode_metadata,
    decode_predict,
    decode_status,
    encode_predict,
    model_path,
)
from moxserve.client.calls import Call, ListCall, MetadataCall, PredictCall, ReloadCall, Reply
from moxserve.client.refusals import PORTS, nobody_answers, overdue, refused, unavailable
from moxserve.client.transport import is_loopback
from moxserve.errors import ClientError, MoxserveError, ServerUnreachableError, UsageError

__all__ = ["AsyncRestTransport", "RestTransport"]

_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
_HEADERS = {"content-type": "application/json"}


class RestTransport:
    """Calls TensorFlow Serving's REST API.

    Args:
        url: `http://HOST:PORT[/PREFIX]`; the API's `/v1/models/...` follows it.
        rows: send predict requests in row format instead of column format.
    """

    needs_signature = True

    def __init__(self, url: str, *, rows: bool = False) -> None:
        self.target = url.rstrip("/")
        self._rows = rows
        # No proxy of the environment can reach this machine's own loopback for us.
        self._http = httpx2.Client(limits=_LIMITS, trust_env=not is_loopback(url))

    def handle(self, call: Call) -> Reply:
        """Send one call and wait for its answer.

        Raises:
            ServerUnreachableError: nobody answers, or the server says 503.
            RequestError: every other error.
            ClientError: the answer has another form than TensorFlow Serving's.
        """
        method, url, body = _request(self.target, call, self._rows)
        try:
            response = self._http.request(method, url, content=body, headers=_HEADERS, timeout=call.timeout_s)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise _translate(error, self.target, call.timeout_s) from error
        return _reply(self.target, call, response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncRestTransport:
    """The same for asyncio.

    Args:
        url: `http://HOST:PORT[/PREFIX]`.
        rows: send predict requests in row format instead of column format.
    """

    needs_signature = True

    def __init__(self, url: str, *, rows: bool = False) -> None:
        self.target = url.rstrip("/")
        self._rows = rows
        self._http = httpx2.AsyncClient(limits=_LIMITS, trust_env=not is_loopback(url))

    async def handle_async(self, call: Call) -> Reply:
        """Send one call and await its answer; errors as `RestTransport.handle`."""
        method, url, body = _request(self.target, call, self._rows)
        try:
            response = await self._http.request(method, url, content=body, headers=_HEADERS, timeout=call.timeout_s)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise _translate(error, self.target, call.timeout_s) from error
        return _reply(self.target, call, response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _request(base: str, call: Call, rows: bool) -> tuple[str, str, bytes | None]:
    if isinstance(call, ListCall):
        return "GET", f"{base}/v1/models", None
    if isinstance(call, ReloadCall):
        raise UsageError(
            f"{base}: the REST API cannot change the configuration", hint=f"use the server's gRPC address ({PORTS})"
        )
    path = base + model_path(call.model)
    if isinstance(call, PredictCall):
        return "POST", f"{path}:predict", encode_predict(call, rows=rows)
    return "GET", f"{path}/metadata" if isinstance(call, MetadataCall) else path, None


def _reply(target: str, call: Call, response: Any) -> Reply:
    if response.status_code != 200:
        raise _refused(target, response)
    answer = decode_json(response.content)
    if isinstance(call, PredictCall):
        return decode_predict(call, answer)
    if isinstance(call, ListCall):
        return decode_list(answer)
    return decode_metadata(answer, call.model) if isinstance(call, MetadataCall) else decode_status(answer)


def _refused(target: str, response: Any) -> MoxserveError:
    status = _STATUS.get(response.status_code, "UNKNOWN")
    try:
        body = decode_json(response.content)
    except ClientError:
        body = None
    if not isinstance(body, dict) or "error" not in body:
        message = f"HTTP {response.status_code} without the error body of a model server: {response.text[:200]!r}"
        return refused(target, status, message, f"is this the REST address of a model server? ({PORTS})")
    status = str(body.get("code") or status)
    if status == "UNAVAILABLE":
        return unavailable(target, str(body["error"]))
    return refused(target, status, str(body["error"]), body.get("hint"))


def _translate(error: Exception, target: str, timeout_s: float | None) -> MoxserveError:
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return overdue(target, timeout_s)
    if isinstance(error, httpx2.RemoteProtocolError):
        return ServerUnreachableError(
            f"{target} broke the connection off: {error}", hint=f"is this a gRPC address? ({PORTS})"
        )
    text = str(error)
    return nobody_answers(target, text.partition("] ")[2] or text or type(error).__name__, "REST")
