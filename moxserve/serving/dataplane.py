"""Answers requests. Every transport calls this, so that models, versions, checks and statuses are decided once.

A transport reads its own wire format, calls a method here, writes the answer, and maps a ServingError to its own
status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import NotFound
from moxserve.protocol import messages
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.manager import Manager
from moxserve.serving.servable import Servable
from moxserve.types import ModelRef

__all__ = ["DataPlane", "Decode", "Metadata", "Prediction"]

Decode = Callable[[CallSignature], Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model.

    Attributes:
        name: of the model, as asked for.
        version: that answered.
        signature: key of the signature that was run.
        outputs: by alias.
    """

    name: str
    version: int
    signature: str
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a version can do.

    Attributes:
        name: of the model.
        version: that was looked at.
        signature_defs: SignatureDefMap message.
    """

    name: str
    version: int
    signature_defs: Any


class DataPlane:
    """The core behind all transports.

    Args:
        manager: that lends versions.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def predict(
        self, ref: ModelRef, signature_name: str, decode: Decode, output_filter: Sequence[str] = ()
    ) -> Prediction:
        """Run a signature of a model.

        Args:
            ref: which model and version.
            signature_name: key; empty for `serving_default`.
            decode: reads the inputs, once model and signature are known; its errors go to the caller.
            output_filter: outputs to compute; empty for all.

        Raises:
            NotFound: no such model or version is available.
            SignatureNotFound: it has no such signature.
            InvalidArgument: the inputs or the filter do not fit the signature, or the graph refuses them.
            ServingError: the model failed.
        """
        with self._manager.borrow(ref) as servable:
            return predict_on(servable, signature_name, decode, output_filter)

    def metadata(self, ref: ModelRef) -> Metadata:
        """Tell the signatures of a version.

        Raises:
            NotFound: no such model or version is available.
        """
        with self._manager.borrow(ref) as servable:
            return Metadata(servable.name, servable.version, servable.backend.signature_defs)

    def status_response(self, ref: ModelRef) -> Any:
        """Tell the states of a model's versions, highest first, or of the one that is asked for.

        A label is not looked at: all versions are told, as tensorflow_model_server does.

        Returns:
            A GetModelStatusResponse message.

        Raises:
            NotFound: nothing is known of them.
        """
        known = self._manager.statuses(ref.name)
        if ref.version is not None:
            known = [status for status in known if status.version == ref.version]
            if not known:
                raise NotFound(f"Could not find version {ref.version} of model {ref.name}")
        if not known:
            raise NotFound(f"Could not find any versions of model {ref.name}")
        response = messages.GetModelStatusResponse()
        for status in known:
            entry = response.model_version_status.add(version=status.version, state=int(status.state))
            entry.status.error_code = status.error.grpc_code if status.error else 0
            entry.status.error_message = status.error.message if status.error else ""
        return response


def predict_on(
    servable: Servable, signature_name: str, decode: Decode, output_filter: Sequence[str] = ()
) -> Prediction:
    """Run a signature of a version in hand; see `DataPlane.predict`."""
    call = servable.call(signature_name)
    inputs = decode(call)
    outputs = servable.backend.run(call.signature.name, inputs, call.match_outputs(output_filter))
    return Prediction(servable.name, servable.version, call.signature.name, outputs)
