"""The REST API as a bare ASGI application.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict|classify|regress
    GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]
    GET  /v1/models

Names and labels have no `/` and no `:`, and are percent-decoded. Paths and verbs are case-insensitive. A query string
is ignored. Requests with `Content-Encoding: gzip` are inflated. Every answer under `/v1/` is JSON; errors are
`{"error": "..."}` with the HTTP status of their kind. `options.metrics_path` answers with the page of metrics.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from moxserve.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MoxserveError,
    ResourceExhausted,
)
from moxserve.protocol import rest
from moxserve.protocol.classify import parse_examples, write_classify, write_regress
from moxserve.protocol.json_values import error_json
from moxserve.protocol.metadata import metadata_json
from moxserve.protocol.status import models_json, status_json
from moxserve.serving.dataplane import DataPlane
from moxserve.serving.metrics import ServingMetrics, status_of
from moxserve.serving.rest.options import RestOptions
from moxserve.serving.servable import SignatureNotFound
from moxserve.types import ModelRef

__all__ = ["RestApp"]

logger = logging.getLogger(__name__)

_MODEL = r"(?P<name>[^/:]+)"
_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/{_MODEL}{_WHICH}:(?P<verb>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/{_MODEL})?{_WHICH}(?P<metadata>/metadata)?", re.IGNORECASE)
_NOT_FOUND = b"<html><body><h1>404 Not Found</h1>The API is below /v1/models</body></html>\n"
_INT64_MAX = 2**63 - 1
_MAX_INFLATED_BYTES = 100 << 20

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

_CORS: Headers = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


@dataclass(slots=True)
class _Call:
    """What a request turned out to ask for, as metrics tell it."""

    model: str = ""
    api: str = ""


class RestApp:
    """The application.

    Args:
        dataplane: that answers.
        options: limits.
        pool: where inference runs, so that the event loop never waits for a model.
        metrics: where requests are counted, and what the page of metrics shows.
    """

    def __init__(self, dataplane: DataPlane, options: RestOptions, pool: Executor, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._dataplane = dataplane
        self._options = options
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
        if path == self._options.metrics_path:
            await _answer(send, 200, self._metrics.page(), b"text/plain")
            return
        if not path.lower().startswith("/v1/"):
            await _answer(
                send, 404, b"<html><body><h1>404 Not Found</h1>The API is below /v1/</body></html>", b"text/html"
            )
            return
        began = time.perf_counter()
        call = _Call()
        try:
            if scope["method"] == "OPTIONS":
                status, code, body = _preflight(scope)
            else:
                status, code, body = 200, "OK", await self._route(scope, path, receive, call)
        except MoxserveError as error:
            status, code, body = error.http_status, status_of(error), error_json(str(error))
        except Exception as error:
            logger.exception("a REST request failed")
            status, code, body = 500, status_of(error), error_json(f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - began
        self._metrics.request(call.model, code, api=call.api, entrypoint="REST", seconds=seconds)
        await _answer(send, status, body, b"application/json", _CORS if self._options.cors else ())

    async def _route(self, scope: Scope, path: str, receive: Receive, call: _Call) -> bytes:
        method = scope["method"]
        if method == "POST" and (match := _POST.fullmatch(path)):
            ref = _ref(match)
            verb = match["verb"].lower()
            call.model, call.api = ref.name, verb
            answer = getattr(self, "_" + verb)
            return await self._in_pool(answer, ref, _inflated(scope, await self._body(receive)))
        if method == "GET" and (match := _GET.fullmatch(path)):
            if match["name"] is None:
                if match[0].lower() == "/v1/models":
                    return models_json(self._dataplane.models())
                raise InvalidArgument("Missing model name in request.")
            ref = _ref(match)
            call.model = ref.name
            return self._metadata(ref) if match["metadata"] else self._status(ref)
        raise InvalidArgument(f"Malformed request: {method} {path}")

    async def _body(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InvalidArgument("the client went away before its request was complete")
            part = message.get("body", b"")
            size += len(part)
            if size > self._options.max_body_bytes:
                raise ResourceExhausted(f"the body has more than {self._options.max_body_bytes} bytes")
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _in_pool(self, work: Callable[..., bytes], *args: Any) -> bytes:
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        if self._options.timeout_s <= 0:
            return await future
        try:
            return await asyncio.wait_for(future, self._options.timeout_s)
        except asyncio.TimeoutError:
            # The run itself goes on to its end; only the wait for it is over.
            raise DeadlineExceeded("Timed out waiting for notification") from None

    def _predict(self, ref: ModelRef, body: bytes) -> bytes:
        request = rest.parse_predict(body)
        try:
            prediction = self._dataplane.predict(
                ref, request.signature_name, lambda call: request.tensors(call.signature)
            )
        except SignatureNotFound as error:
            raise InvalidArgument(f'Serving signature name: "{error.signature}" not found in signature def') from None
        return rest.write_predict(prediction.outputs, row_format=request.row_format)

    def _classify(self, ref: ModelRef, body: bytes) -> bytes:
        request = parse_examples(body)
        inferred = self._dataplane.classify(ref, request.signature_name, lambda: request.examples)
        return write_classify(inferred.result.classes, inferred.result.scores)

    def _regress(self, ref: ModelRef, body: bytes) -> bytes:
        request = parse_examples(body)
        inferred = self._dataplane.regress(ref, request.signature_name, lambda: request.examples)
        return write_regress(inferred.result.values)

    def _status(self, ref: ModelRef) -> bytes:
        return status_json(self._dataplane.status_response(ref))

    def _metadata(self, ref: ModelRef) -> bytes:
        metadata = self._dataplane.metadata(ref)
        return metadata_json(metadata.name, metadata.version, metadata.signature_defs)


def _ref(match: re.Match[str]) -> ModelRef:
    version = match["version"]
    if version is not None and int(version) > _INT64_MAX:
        raise InvalidArgument(f"Failed to convert version: {version} to numeric.")
    label = match["label"]
    return ModelRef(unquote(match["name"]), None if version is None else int(version), label and unquote(label))


def _preflight(scope: Scope) -> tuple[int, str, bytes]:
    """Answer a browser that asks whether it may send a request from another origin."""
    origin = _header(scope, b"origin")
    if b"http://" in origin or b"https://" in origin:
        return 200, "OK", b""
    return 400, "FAILED_PRECONDITION", b""


def _header(scope: Scope, wanted: bytes) -> bytes:
    value: bytes = next((value for name, value in scope["headers"] if name == wanted), b"")
    return value


def _inflated(scope: Scope, body: bytes) -> bytes:
    encoding = _header(scope, b"content-encoding").strip().lower()
    if encoding != b"gzip":
        return body
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = inflater.decompress(body, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise InvalidArgument(f"the body is no gzip data: {error}") from None
    if inflater.unconsumed_tail:
        raise ResourceExhausted(f"the body inflates to more than {_MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise InvalidArgument("the body is gzip data that ends too early")
    return data


async def _answer(send: Send, status: int, body: bytes, content_type: bytes, more: Headers = ()) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
