"""The routes of the Open Inference Protocol over REST; what they answer is decided in `serving.open_inference`.

    GET  /v2   /v2/health/live   /v2/health/ready   /v2/models/stats
    GET  /v2/models/NAME[/versions/V][/ready|/config|/stats]
    POST /v2/models/NAME[/versions/V]/infer
    POST /v2/repository/index

NAME and V are percent-decoded; V is a number or a label. Bodies are as `protocol.v2_json` tells. Errors are
`{"error": "..."}` with the HTTP status of their kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

import orjson

from moxserve.errors import InvalidArgument, NotFound
from moxserve.protocol import v2_json
from moxserve.protocol.json_values import loads
from moxserve.protocol.v2 import InferAnswer, model_ref
from moxserve.serving.execution import RequestContext, WorkPool
from moxserve.serving.open_inference import OpenInference
from moxserve.serving.rest.exchange import LARGE_BYTES, LARGE_CELLS, RestAnswer, RestRequest
from moxserve.types import ModelRef

__all__ = ["InferenceRoutes"]

_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|config|stats|infer))?"
)
_REPOSITORY = re.compile(r"/v2/repository/models/(?P<name>[^/]+)/(?P<verb>load|unload)")
_JSON_BYTES = "inference-header-content-length"


class InferenceRoutes:
    """Answers the requests whose paths begin with `/v2`.

    Args:
        core: that answers.
        pool: where large JSON is read and written, so that the event loop never waits for it.
    """

    def __init__(self, core: OpenInference, pool: WorkPool) -> None:
        self._core = core
        self._pool = pool
        self._fixed: dict[tuple[str, str], Callable[[], RestAnswer]] = {
            ("GET", "/v2"): lambda: _json(core.server_metadata()),
            ("GET", "/v2/health/live"): lambda: _json({"live": True}),
            ("GET", "/v2/health/ready"): self._ready,
            ("GET", "/v2/models/stats"): lambda: _json({"model_stats": core.statistics()}),
        }

    async def answer(self, request: RestRequest) -> RestAnswer | None:
        """Answer a request; None when its path is none of ours.

        Raises:
            NotFound: there is no such path below /v2, or no such model or version.
            MoxserveError: as of `OpenInference` and `v2_json`.
        """
        path = request.path.rstrip("/")
        if path != "/v2" and not path.startswith("/v2/"):
            return None
        request.api = "v2"
        fixed = self._fixed.get((request.method, path))
        answer = fixed() if fixed is not None else await self._found(path, request)
        if answer is None:
            raise NotFound(
                f"there is no {request.method} {path:.200} in the Open Inference Protocol as it is offered here",
                hint="try GET /v2, POST /v2/models/NAME/infer; docs/open_inference.md lists all",
            )
        return answer

    async def _found(self, path: str, request: RestRequest) -> RestAnswer | None:
        if match := _MODEL.fullmatch(path):
            ref = model_ref(unquote(match["name"]), unquote(match["version"] or ""))
            verb = match["verb"] or "metadata"
            request.model, request.api = ref.name, verb
            if request.method != ("POST" if verb == "infer" else "GET"):
                return None
            return await self._infer(ref, request) if verb == "infer" else self._told(verb, ref)
        if request.method != "POST":
            return None
        if path == "/v2/repository/index":
            return _json(self._core.index(ready_only=_ready_only(await request.body())))
        if match := _REPOSITORY.fullmatch(path):
            raise self._core.refuse_repository(match["verb"], unquote(match["name"]))
        return None

    def _ready(self) -> RestAnswer:
        ready = self._core.ready()
        return _json({"ready": ready}, 200 if ready else 503)

    def _told(self, verb: str, ref: ModelRef) -> RestAnswer:
        core = self._core
        if verb == "ready":
            ready = core.model_ready(ref)
            status = 200 if ready else 503 if core.known(ref.name) else 404
            return _json({"name": ref.name, "ready": ready}, status)
        if verb == "config":
            return _json(core.model_config(ref))
        if verb == "stats":
            return _json({"model_stats": core.statistics(ref)})
        return _json(core.model_metadata(ref))

    async def _infer(self, ref: ModelRef, request: RestRequest) -> RestAnswer:
        data = await request.body()
        json_bytes = _json_bytes(request.header(_JSON_BYTES))
        read = partial(v2_json.infer_request, ref, data, json_bytes)
        large = (json_bytes or len(data)) > LARGE_BYTES
        asked = await self._pool.run(read, request.context) if large else read()
        body = await self._written(await self._core.infer(asked, request.context), request.context)
        if body.json_bytes is None:
            return RestAnswer(200, body.data)
        length = str(body.json_bytes).encode()
        return RestAnswer(200, body.data, b"application/octet-stream", ((_JSON_BYTES.encode(), length),))

    async def _written(self, answer: InferAnswer, context: RequestContext) -> v2_json.Body:
        cells = sum(array.size for array in answer.outputs.values())
        if cells > LARGE_CELLS and not answer.request.binary:
            return await self._pool.run(partial(v2_json.infer_response, answer), context)
        return v2_json.infer_response(answer)


def _json_bytes(header: str) -> int | None:
    if not header:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) < 20):
        raise InvalidArgument(f"Inference-Header-Content-Length is {header!r:.80}; expected a number of bytes")
    return int(header)


def _ready_only(body: bytes) -> bool:
    document = loads(body) if body.strip() else {}
    ready = document.get("ready", False) if type(document) is dict else None
    if type(ready) is not bool:
        raise InvalidArgument(f'the body is {body[:80]!r}; expected nothing, or an object such as {{"ready": true}}')
    return ready


def _json(value: Any, status: int = 200) -> RestAnswer:
    return RestAnswer(status, orjson.dumps(value))
