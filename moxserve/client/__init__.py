"""Talk to a model server, or to a model on disk, with NumPy in and NumPy out. TensorFlow is never imported.

    with Client("grpc://localhost:8500") as client:
        answer = client.predict("digits", images)          # {'classes': array([...]), 'probabilities': array([...])}

Where to look: `client.py` and `async_client.py` (the two faces), `flow.py` (what both do, without any input or output
of its own: checking, metadata cache, retries), `transport.py` (the seam), `grpc.py`, `rest.py`, `local.py`, `mock.py`
(its implementations), `fit.py` (inputs against a signature), `wire.py` and `bodies.py` (bytes), `refusals.py` (errors).

grpc is imported by the first gRPC call, httpx2 by the first REST call; this package itself needs only NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moxserve.client.calls import (
    UNSET,
    Call,
    ListCall,
    ListedModel,
    ListReply,
    MetadataCall,
    ModelMetadata,
    PredictCall,
    PredictReply,
    ReloadCall,
    ReloadReply,
    Reply,
    Retry,
    StatusCall,
    StatusReply,
    VersionStatus,
)
from moxserve.client.client import Client
from moxserve.client.transport import AsyncTransport, Transport

if TYPE_CHECKING:
    from moxserve.client.async_client import AsyncClient
    from moxserve.client.grpc import AsyncGrpcTransport, GrpcTransport
    from moxserve.client.local import LocalTransport
    from moxserve.client.mock import MockTransport
    from moxserve.client.rest import AsyncRestTransport, RestTransport

__all__ = [
    "UNSET",
    "AsyncClient",
    "AsyncGrpcTransport",
    "AsyncRestTransport",
    "AsyncTransport",
    "Call",
    "Client",
    "GrpcTransport",
    "ListCall",
    "ListReply",
    "ListedModel",
    "LocalTransport",
    "MetadataCall",
    "MockTransport",
    "ModelMetadata",
    "PredictCall",
    "PredictReply",
    "ReloadCall",
    "ReloadReply",
    "Reply",
    "RestTransport",
    "Retry",
    "StatusCall",
    "StatusReply",
    "Transport",
    "VersionStatus",
]

_LAZY = {
    "AsyncClient": "async_client",
    "AsyncGrpcTransport": "grpc",
    "AsyncRestTransport": "rest",
    "GrpcTransport": "grpc",
    "LocalTransport": "local",
    "MockTransport": "mock",
    "RestTransport": "rest",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
