"""Answers the requests for the page: `/`, and its two files below `/ui/`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from importlib import resources

from moxserve import __version__
from moxserve.errors import ServingError
from moxserve.protocol import messages
from moxserve.protocol.status import ModelListing
from moxserve.serving.dataplane import DataPlane
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.rest.exchange import RestAnswer, RestRequest
from moxserve.serving.rest.page.figures import read_figures
from moxserve.serving.rest.page.render import ModelView, PageView, VersionView, render
from moxserve.serving.rest.page.sample import sample_request
from moxserve.types import DEFAULT_SIGNATURE, ModelRef

__all__ = ["StatusPage"]

_FILES = {"/ui/page.css": b"text/css; charset=utf-8", "/ui/page.js": b"text/javascript; charset=utf-8"}
_HEADERS = (
    # Nothing from elsewhere, nothing inline: a name that got through unescaped could still run no script.
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
     b"form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)  # fmt: skip


class StatusPage:
    """The page of one server.

    Args:
        dataplane: whose models are shown.
        metrics: gives what was counted; may take a moment, where several processes count together.
        metrics_path: where the page of metrics is; empty for nowhere.
    """

    def __init__(self, dataplane: DataPlane, metrics: Callable[[], ServingMetrics], metrics_path: str = "") -> None:
        self._dataplane = dataplane
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._began = time.monotonic()
        folder = resources.files(__package__)
        self._files = {path: folder.joinpath(path.rpartition("/")[2]).read_bytes() for path in _FILES}

    async def answer(self, request: RestRequest) -> RestAnswer | None:
        """Answer a request; None when it is for another path."""
        from moxserve.serving.rest.exchange import RestAnswer

        if request.method not in ("GET", "HEAD"):
            return None
        if request.path == "/":
            # Off the loop: many models make a long page.
            body = await asyncio.to_thread(self._page)
            return RestAnswer(200, body, b"text/html; charset=utf-8", _HEADERS)
        if request.path in _FILES:
            return RestAnswer(200, self._files[request.path], _FILES[request.path], _HEADERS)
        return None

    def _page(self) -> bytes:
        view = PageView(
            version=__version__,
            host=socket.gethostname(),
            uptime_s=time.monotonic() - self._began,
            models=[self._model(listing) for listing in self._dataplane.models()],
            figures=read_figures(self._metrics()),
            metrics_path=self._metrics_path,
        )
        return render(view).encode(errors="replace")

    def _model(self, listing: ModelListing) -> ModelView:
        versions = [self._version(listing, entry) for entry in listing.status.model_version_status]
        try:
            current = self._dataplane.metadata(ModelRef(listing.name))
        except ServingError:
            return ModelView(listing.name, versions)
        # What is asked when no signature is named comes first.
        names = sorted(current.signatures, key=lambda name: (name != DEFAULT_SIGNATURE, name))
        signatures = {name: current.signatures[name] for name in names}
        return ModelView(
            listing.name,
            versions,
            current.version,
            {key: str(signature) for key, signature in signatures.items()},
            {key: sample_request(signature) for key, signature in signatures.items()},
        )

    def _version(self, listing: ModelListing, entry: object) -> VersionView:
        number, status = entry.version, entry.status  # type: ignore[attr-defined]
        state = messages.enum_name("tensorflow.serving.ModelVersionStatus.State", entry.state)  # type: ignore[attr-defined]
        error = ""
        if status.error_code:
            error = f"{messages.enum_name('tensorflow.error.Code', status.error_code)}: {status.error_message}"
        labels = [label for label, version in sorted(listing.labels.items()) if version == number]
        try:
            loaded = self._dataplane.metadata(ModelRef(listing.name, number))
        except ServingError:
            return VersionView(number, state, error, labels)
        return VersionView(number, state, error, labels, loaded.platform, loaded.variant)
