"""What the Open Inference Protocol asks for, answered from the dataplane; its gRPC and REST transports call this.

Answers that are not inference are plain dicts of the protocol's JSON form, which is also the form of its messages.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve import __version__
from moxserve.errors import FailedPrecondition, InvalidArgument, MoxserveError, ServingError
from moxserve.protocol.v2 import InferAnswer, InferRequest
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.dataplane import DataPlane, Metadata
from moxserve.serving.execution import RequestContext
from moxserve.serving.policy import State
from moxserve.types import DEFAULT_SIGNATURE, DType, ModelRef, Signature, TensorSpec, dtype_of

__all__ = ["OpenInference"]

_EXTENSIONS = ("binary_tensor_data", "parameters", "model_configuration", "model_repository", "statistics")
_STATES = {
    State.START: "LOADING",
    State.LOADING: "LOADING",
    State.AVAILABLE: "READY",
    State.UNLOADING: "UNLOADING",
    State.END: "UNAVAILABLE",
}
# As Triton calls them; any other platform keeps its own name.
_PLATFORMS = {"tensorflow": "tensorflow_savedmodel", "onnx": "onnxruntime_onnx"}

Record = dict[str, Any]


@dataclass(slots=True)
class _Counts:
    """Requests of one version over this protocol, and the time they took in ns."""

    successes: int = 0
    success_ns: int = 0
    compute_ns: int = 0
    failures: int = 0
    failure_ns: int = 0
    last_ms: int = 0


class OpenInference:
    """The protocol's core. Its coroutines and its counts belong to the server's event loop.

    Args:
        dataplane: that answers.
    """

    def __init__(self, dataplane: DataPlane) -> None:
        self._dataplane = dataplane
        self._counts: dict[tuple[str, int], _Counts] = defaultdict(_Counts)

    # Inference

    async def infer(self, request: InferRequest, context: RequestContext) -> InferAnswer:
        """Run a model.

        Raises:
            NotFound: no such model or version is available.
            InvalidArgument: the inputs do not fit the signature, or the graph refuses them.
            ServingError: as of `DataPlane.predict`.
        """
        began = time.perf_counter()
        timeout_s = request.timeout_s
        if timeout_s is not None:
            context.deadline = min(context.deadline, time.monotonic() + timeout_s)
        asked = [output.name for output in request.outputs]
        try:
            prediction = await self._dataplane.predict(
                request.model, request.signature_name, lambda call: _inputs(request, call), asked, context
            )
        except MoxserveError:
            self._failed(request.model, time.perf_counter() - began)
            raise
        counts = self._counts[prediction.name, prediction.version]
        counts.successes += 1
        counts.success_ns += _ns(time.perf_counter() - began)
        counts.compute_ns += _ns(prediction.run_s)
        counts.last_ms = time.time_ns() // 1_000_000
        outputs = prediction.outputs
        if asked:
            outputs = {name: outputs[name] for name in asked}
        return InferAnswer(request, prediction.name, prediction.version, outputs)

    def _failed(self, ref: ModelRef, seconds: float) -> None:
        with contextlib.suppress(ServingError):  # of a version that does not exist nothing is counted
            counts = self._counts[ref.name, self._dataplane.metadata(ref).version]
            counts.failures += 1
            counts.failure_ns += _ns(seconds)

    # Server

    def ready(self) -> bool:
        """Tell whether requests can be answered: models are configured and one answers, or none is configured."""
        return self._dataplane.ready()

    @staticmethod
    def server_metadata() -> Record:
        """Tell what this server is (`ServerMetadataResponse`)."""
        return {"name": "moxserve", "version": __version__, "extensions": list(_EXTENSIONS)}

    def index(self, *, ready_only: bool = False) -> list[Record]:
        """List the models with the states of their versions (`RepositoryIndexResponse.models`).

        A model without a version has one entry, whose version is empty.

        Args:
            ready_only: leave out versions that do not answer.
        """
        entries = []
        for listing in self._dataplane.models():
            versions = [_indexed(listing.name, status) for status in listing.status.model_version_status]
            entries += versions or [_entry(listing.name, "", "UNAVAILABLE", "no version was found yet")]
        return [entry for entry in entries if entry["state"] == "READY" or not ready_only]

    def refuse_repository(self, what: str, model: str) -> FailedPrecondition:
        """Return the error of a request to load or unload a model.

        Args:
            what: `load` or `unload`.
            model: its name.
        """
        return FailedPrecondition(
            f"{what} of model {model!r}: which models are served is told by the configuration and which versions by "
            "their base paths, not by this request",
            hint="add or remove version directories, change the file of --model_config_file, or send "
            "tensorflow.serving.ModelService/HandleReloadConfigRequest (`moxserve models reload`)",
        )

    # Models

    def model_ready(self, ref: ModelRef) -> bool:
        """Tell whether a version answers; False also for one that does not exist."""
        try:
            self._dataplane.metadata(ref)
        except ServingError:
            return False
        return True

    def known(self, name: str) -> bool:
        """Tell whether a model is configured."""
        return any(listing.name == name for listing in self._dataplane.models())

    def model_metadata(self, ref: ModelRef) -> Record:
        """Tell the inputs and outputs of a version's default signature (`ModelMetadataResponse`).

        Raises:
            NotFound: no such model or version is available.
        """
        found = self._dataplane.metadata(ref)
        signature = _default_signature(found)
        return {
            "name": found.name,
            "versions": [str(version) for version in self._ready_versions(found.name)],
            "platform": _PLATFORMS.get(found.platform, found.platform),
            "inputs": [_tensor(spec) for spec in signature.inputs.values()],
            "outputs": [_tensor(spec) for spec in signature.outputs.values()],
        }

    def model_config(self, ref: ModelRef) -> Record:
        """Tell the same as Triton's ModelConfig (`ModelConfigResponse.config`).

        `max_batch_size` is 0, which means that shapes tell the batch dimension, too.

        Raises:
            NotFound: no such model or version is available.
        """
        found = self._dataplane.metadata(ref)
        signature = _default_signature(found)
        return {
            "name": found.name,
            "platform": _PLATFORMS.get(found.platform, found.platform),
            "backend": found.platform,
            "max_batch_size": 0,
            "input": [_configured(spec) for spec in signature.inputs.values()],
            "output": [_configured(spec) for spec in signature.outputs.values()],
        }

    def statistics(self, ref: ModelRef | None = None) -> list[Record]:
        """Tell how many requests came over this protocol and how long they took (`ModelStatisticsResponse`).

        Args:
            ref: model and version; None for all that answer.

        Raises:
            NotFound: no such model or version is available.
        """
        if ref is None:
            wanted = [(m.name, version) for m in self._dataplane.models() for version in self._ready_versions(m.name)]
        else:
            found = self._dataplane.metadata(ref)
            one = ref.version is not None or ref.label is not None
            versions = [found.version] if one else self._ready_versions(found.name)
            wanted = [(found.name, version) for version in versions]
        return [_statistics(*key, self._counts.get(key) or _Counts()) for key in wanted]

    def _ready_versions(self, name: str) -> list[int]:
        for listing in self._dataplane.models():
            if listing.name == name:
                states = listing.status.model_version_status
                return sorted(status.version for status in states if status.state == State.AVAILABLE)
        return []


def _inputs(request: InferRequest, call: CallSignature) -> Mapping[str, np.ndarray]:
    call.match_inputs(request.inputs)
    for name, array in request.inputs.items():
        expected, sent = call.signature.inputs[name].dtype, dtype_of(array)
        if sent is not expected:
            raise InvalidArgument(
                f"input {name!r} is {_datatype(sent)}; signature {call.signature.name!r} of model "
                f"{request.model.name!r} takes {_datatype(expected)}"
            )
    return request.inputs


def _datatype(dtype: DType) -> str:
    # What the protocol has no name for is told by TensorFlow's; it cannot be asked for, but it should be seen.
    return dtype.v2_name or dtype.name.upper()


def _default_signature(found: Metadata) -> Signature:
    return found.signatures.get(DEFAULT_SIGNATURE) or Signature(DEFAULT_SIGNATURE, "")


def _dims(spec: TensorSpec) -> list[int]:
    # A shape of unknown rank has no form in the protocol; one varying dimension is the nearest.
    return [-1] if spec.shape is None else [-1 if size is None else size for size in spec.shape]


def _tensor(spec: TensorSpec) -> Record:
    return {"name": spec.name, "datatype": _datatype(spec.dtype), "shape": _dims(spec)}


def _configured(spec: TensorSpec) -> Record:
    name = spec.dtype.v2_name
    kind = "TYPE_INVALID" if not name else "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"
    return {"name": spec.name, "data_type": kind, "dims": _dims(spec)}


def _indexed(name: str, status: Any) -> Record:
    state = _STATES.get(status.state, "UNAVAILABLE")
    reason = status.status.error_message or ("unloaded" if state == "UNAVAILABLE" else "")
    return _entry(name, str(status.version), state, reason)


def _entry(name: str, version: str, state: str, reason: str) -> Record:
    return {"name": name, "version": version, "state": state, "reason": reason}


def _statistics(name: str, version: int, counts: _Counts) -> Record:
    done = counts.successes
    return {
        "name": name,
        "version": str(version),
        "last_inference": counts.last_ms,
        "inference_count": done,
        "execution_count": done,
        "inference_stats": {
            "success": {"count": done, "ns": counts.success_ns},
            "fail": {"count": counts.failures, "ns": counts.failure_ns},
            "queue": {"count": done, "ns": 0},
            "compute_input": {"count": done, "ns": 0},
            "compute_infer": {"count": done, "ns": counts.compute_ns},
            "compute_output": {"count": done, "ns": 0},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
