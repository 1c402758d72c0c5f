"""The local transport: a model on disk, run in this process through the server's own backends.

The backend (TensorFlow, ONNX Runtime …) is imported by the first call, not before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from moxserve.client.calls import (
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
    Reply,
    StatusReply,
    VersionStatus,
)
from moxserve.client.refusals import refused
from moxserve.errors import RequestError, ServingError, UsageError
from moxserve.types import ModelRef, Signature

__all__ = ["LocalTransport"]


class Backend(Protocol):
    """What is used of a serving backend."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """By key."""
        ...

    def run(self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Mapping[str, Array]:
        """Run one signature."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


class LocalTransport:
    """Answers from a directory.

    Args:
        directory: one version (it holds a SavedModel, or a model in another format), or the base of numbered versions,
            or a folder of such bases by model name. For a version or its base any model name is accepted.
        load: makes the backend of a version directory; None takes `moxserve.serving.backends.load`.
    """

    def __init__(self, directory: str | os.PathLike[str], *, load: Callable[[str], Any] | None = None) -> None:
        self._directory = os.fspath(directory)
        self.target = f"local:{self._directory}"
        self._load = load
        self._backends: dict[str, Any] = {}
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()

    def handle(self, call: Call) -> Reply:
        """Run one call here. Timeouts have no effect: a run cannot be broken off.

        Raises:
            RequestError: no such model or version, or the backend refused.
        """
        try:
            return self._answer(call)
        except ServingError as error:
            raise refused(self.target, error.status, error.message, error.hint) from error

    def _answer(self, call: Call) -> Reply:
        if isinstance(call, ReloadCall):
            raise UsageError(f"{self.target} is no server: it has no configuration to change", hint="use grpc://")
        if isinstance(call, ListCall):
            return ListReply([ListedModel(name) for name in self._names()])
        versions = self._versions(call.model)
        if isinstance(call, (PredictCall, MetadataCall)):
            version = self._pick(call.model, versions)
            backend = self._backend(versions[version])
            if isinstance(call, MetadataCall):
                signatures = {name: backend.signatures[name] for name in sorted(backend.signatures)}
                return ModelMetadata(call.model.name, version, signatures)
            return PredictReply(backend.run(call.signature_name, call.inputs, call.outputs), version)
        if call.model.version is not None:
            versions = {self._pick(call.model, versions): ""}
        return StatusReply([VersionStatus(version, "AVAILABLE") for version in sorted(versions, reverse=True)])

    def _names(self) -> list[str]:
        """Return the names under which models are found here."""
        if _is_version(self._directory) or _numbered(self._directory):
            return [os.path.basename(os.path.abspath(self._directory))]
        return [name for name in sorted(os.listdir(self._directory)) if _numbered(os.path.join(self._directory, name))]

    def _versions(self, model: ModelRef) -> dict[int, str]:
        """Return version number -> directory."""
        if _is_version(self._directory):
            name = os.path.basename(os.path.abspath(self._directory))
            return {int(name) if name.isdecimal() else 1: self._directory}
        for base in (self._directory, os.path.join(self._directory, model.name)):
            found = _numbered(base)
            if found:
                return found
        raise RequestError(
            f"{self.target} holds no version of a model: expected saved_model.pb, model.onnx, model.xml or "
            f"model.tflite, or folders named by numbers, in it or in its folder {model.name!r}",
            status="NOT_FOUND",
            target=self.target,
        )

    def _pick(self, model: ModelRef, versions: Mapping[int, str]) -> int:
        if model.label is not None:
            raise RequestError(
                f"{self.target}: a model on disk has no labels; got {str(model)!r}",
                status="NOT_FOUND",
                target=self.target,
            )
        if model.version is None:
            # The version that was newest at first stays: a run must not change its model half-way.
            return self._newest.setdefault(model.name, max(versions))
        if model.version not in versions:
            raise RequestError(
                f"{self.target} has no version {model.version}; it has {', '.join(map(str, sorted(versions)))}",
                status="NOT_FOUND",
                target=self.target,
            )
        return model.version

    def _backend(self, path: str) -> Backend:
        with self._lock:
            if path not in self._backends:
                if self._load is None:
                    from moxserve.serving.backends import load

                    self._load = load
                self._backends[path] = self._load(path)
            backend: Backend = self._backends[path]
            return backend

    def close(self) -> None:
        """Release the models."""
        with self._lock:
            for backend in self._backends.values():
                backend.close()
            self._backends.clear()


def _is_version(directory: str) -> bool:
    from moxserve.serving.backends.contents import holds_model

    return holds_model(directory)


def _numbered(base: str) -> dict[int, str]:
    from moxserve.export.versions import parse_version

    if not os.path.isdir(base):
        return {}
    named = {name: parse_version(name) for name in sorted(os.listdir(base)) if os.path.isdir(os.path.join(base, name))}
    return {number: os.path.join(base, name) for name, number in named.items() if number is not None}
