"""The REST API as a bare ASGI application, on the server's event loop.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict|classify|regress
    GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]
    GET  /v1/models

Names and labels have no `/` and no `:`, and are percent-decoded. Paths and verbs are case-insensitive. A query string
is ignored. Requests with `Content-Encoding: gzip` or `deflate` are inflated. Every answer under `/v1/` is JSON; errors
are `{"error": "..."}` with the HTTP status of their kind. `options.metrics_path` answers with the page of metrics. What
is below other paths is up to further groups of routes; those below `/v2` are an API, too: counted, limited in time and
open to web pages as this one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import numpy as np

from moxserve.errors import InvalidArgument, MoxserveError
from moxserve.protocol import rest
from moxserve.protocol.classify import parse_examples, write_classify, write_regress
from moxserve.protocol.json_values import error_json
from moxserve.protocol.metadata import metadata_json
from moxserve.protocol.status import models_json, status_json
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.dataplane import DataPlane
from moxserve.serving.execution import RequestContext, WorkPool
from moxserve.serving.metrics import ServingMetrics, status_of
from moxserve.serving.observe import Recorder
from moxserve.serving.rest.exchange import LARGE_BYTES, LARGE_CELLS, Headers, Receive, RestAnswer, RestRequest, Routes
from moxserve.serving.rest.observed import begin_request, end_request
from moxserve.serving.rest.options import RestOptions
from moxserve.serving.servable import SignatureNotFound
from moxserve.types import ModelRef

__all__ = ["RestApp"]

logger = logging.getLogger(__name__)

_MODEL = r"(?P<name>[^/:]+)"
_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/{_MODEL}{_WHICH}:(?P<verb>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/{_MODEL})?{_WHICH}(?P<metadata>/metadata)?", re.IGNORECASE)
_NOT_FOUND = RestAnswer(404, b"<html><body><h1>404 Not Found</h1>The API is below /v1/</body></html>", b"text/html")
_INT64_MAX = 2**63 - 1
_INT64_DIGITS = 19
_KEPT_PATH = 512

Scope = Mapping[str, Any]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_CORS: Headers = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


class RestApp:
    """The application.

    Args:
        dataplane: that answers.
        options: limits.
        pool: where large bodies are read and written, so that the event loop never waits for one.
        metrics: where requests are counted.
        metrics_page: gives what the page of metrics shows; may block.
        more: further groups of routes, for paths outside `/v1/`.
        recorder: where each request is told; None for nowhere.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        options: RestOptions,
        pool: WorkPool,
        metrics: ServingMetrics,
        metrics_page: Callable[[], bytes],
        more: Sequence[Routes] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder or Recorder()
        self._metrics = metrics
        self._metrics_page = metrics_page
        self._dataplane = dataplane
        self._options = options
        self._pool = pool
        self._more = more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = RestRequest(scope, receive, self._options.max_body_bytes)
        record = begin_request(request, active=self._recorder.active)
        if request.path[:4].lower() in ("/v1/", "/v2/", "/v2"):
            answer = await self._api(request)
        else:
            answer, _ = await _guarded(self._other(request), request)
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        if request.context.request_id:
            headers.append((b"x-request-id", request.context.request_id.encode()))
        if record is not None:
            end_request(record, request, answer)
            self._recorder.take(record)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _api(self, request: RestRequest) -> RestAnswer:
        began = time.perf_counter()
        if self._options.timeout_s > 0:
            request.context.deadline = time.monotonic() + self._options.timeout_s
        answer, code = await _guarded(self._route(request), request)
        seconds = time.perf_counter() - began
        request.status = code
        self._metrics.request(request.model, code, api=request.api, entrypoint="REST", seconds=seconds)
        if self._options.cors:
            answer.headers = (*answer.headers, *_CORS)
        return answer

    async def _other(self, request: RestRequest) -> RestAnswer:
        if self._options.metrics_path and request.path == self._options.metrics_path:
            return await self._monitoring(request)
        for routes in self._more:
            answer = await routes.answer(request)
            if answer is not None:
                return answer
        return _NOT_FOUND

    async def _monitoring(self, request: RestRequest) -> RestAnswer:
        if request.query:
            text = f"Unexpected path: {request.path}?{request.query}. Should be {self._options.metrics_path}"
            return RestAnswer(400, text.encode(), b"text/plain")
        return RestAnswer(200, await asyncio.to_thread(self._metrics_page), b"text/plain")

    async def _route(self, request: RestRequest) -> RestAnswer:
        method, path = request.method, request.path
        if path[:3].lower() == "/v2":
            return _preflight(request) if method == "OPTIONS" else await self._other(request)
        if method == "POST" and (asked := _asked(path) if len(path) <= _KEPT_PATH else _read_path(path)):
            verb, ref = asked
            request.model, request.api = ref.name, verb
            body = await request.body()
            if verb == "predict":
                return RestAnswer(200, await self._predict(ref, body, request.context))
            infer = self._classify if verb == "classify" else self._regress
            return RestAnswer(200, await infer(ref, body, request.context))
        if method == "OPTIONS":
            return _preflight(request)
        if method == "GET" and (match := _GET.fullmatch(path)):
            if match["name"] is None:
                if match[0].lower() == "/v1/models":
                    return RestAnswer(200, models_json(self._dataplane.models()))
                raise InvalidArgument("Missing model name in request.")
            ref = _ref(match)
            request.model = ref.name
            return RestAnswer(200, self._metadata(ref) if match["metadata"] else self._status(ref))
        raise InvalidArgument(f"Malformed request: {method} {path}")

    async def _predict(self, ref: ModelRef, body: bytes, context: RequestContext) -> bytes:
        large = len(body) > LARGE_BYTES
        if large:
            request = await self._pool.run(partial(rest.parse_predict, body), context)
        else:
            request = rest.parse_predict(body)

        def decode(call: CallSignature) -> Any:
            if large:
                return self._pool.run(partial(request.tensors, call.signature), context)
            return request.tensors(call.signature)

        try:
            prediction = await self._dataplane.predict(ref, request.signature_name, decode, context=context)
        except SignatureNotFound as error:
            raise InvalidArgument(f'Serving signature name: "{error.signature}" not found in signature def') from None
        write = partial(rest.write_predict, prediction.outputs, row_format=request.row_format)
        return await self._written(write, prediction.outputs.values(), context)

    async def _classify(self, ref: ModelRef, body: bytes, context: RequestContext) -> bytes:
        request = await self._examples(body, context)
        inferred = await self._dataplane.classify(ref, request.signature_name, lambda: request.examples, context)
        classes, scores = inferred.result.classes, inferred.result.scores
        write = partial(write_classify, classes, scores)
        return await self._written(write, [a for a in (classes, scores) if a is not None], context)

    async def _regress(self, ref: ModelRef, body: bytes, context: RequestContext) -> bytes:
        request = await self._examples(body, context)
        inferred = await self._dataplane.regress(ref, request.signature_name, lambda: request.examples, context)
        values = inferred.result.values
        return await self._written(partial(write_regress, values), [values], context)

    async def _examples(self, body: bytes, context: RequestContext) -> Any:
        if len(body) > LARGE_BYTES:
            return await self._pool.run(partial(parse_examples, body), context)
        return parse_examples(body)

    async def _written(self, write: Callable[[], bytes], arrays: Any, context: RequestContext) -> bytes:
        if sum(map(_cells, arrays)) > LARGE_CELLS:
            return await self._pool.run(write, context)
        return write()

    def _status(self, ref: ModelRef) -> bytes:
        return status_json(self._dataplane.status_response(ref))

    def _metadata(self, ref: ModelRef) -> bytes:
        metadata = self._dataplane.metadata(ref)
        return metadata_json(metadata.name, metadata.version, metadata.signature_defs)


def _cells(array: np.ndarray) -> int:
    return array.size


async def _guarded(work: Awaitable[RestAnswer], request: RestRequest) -> tuple[RestAnswer, str]:
    """Map errors to answers; give the name of the status, too. What is no error of ours is a bug: it is logged."""
    try:
        answer = await work
        return answer, "OK" if answer.status < 400 else "FAILED_PRECONDITION"
    except MoxserveError as error:
        request.status = status_of(error)
        return RestAnswer(error.http_status, error_json(str(error), request.context.request_id)), request.status
    except asyncio.CancelledError:
        # The caller has left: nobody reads this answer, but what was asked is counted.
        return RestAnswer(499, b""), "CANCELLED"
    except Exception as error:
        logger.exception("a REST request failed")
        request.status = status_of(error)
        body = error_json(f"{type(error).__name__}: {error}", request.context.request_id)
        return RestAnswer(500, body), request.status


def _read_path(path: str) -> tuple[str, ModelRef] | None:
    """Return what a request for inference asks for, and of which model; None when the path is none of one."""
    match = _POST.fullmatch(path)
    return (match["verb"].lower(), _ref(match)) if match else None


# Callers ask the same few paths again and again.
_asked = lru_cache(maxsize=256)(_read_path)


def _ref(match: re.Match[str]) -> ModelRef:
    version = match["version"]
    if version is not None and (len(version.lstrip("0")) > _INT64_DIGITS or int(version) > _INT64_MAX):
        raise InvalidArgument(f"Failed to convert version: {version} to numeric.")
    label = match["label"]
    return ModelRef(unquote(match["name"]), None if version is None else int(version), label and unquote(label))


def _preflight(request: RestRequest) -> RestAnswer:
    """Answer a browser that asks whether it may send a request from another origin."""
    origin = request.header("origin")
    return RestAnswer(200 if "http://" in origin or "https://" in origin else 400, b"")
