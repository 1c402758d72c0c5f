"""Options of the gRPC transport; importing them does not import gRPC."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GrpcOptions"]


@dataclass(frozen=True)
class GrpcOptions:
    """How the gRPC server runs.

    Attributes:
        max_threads: requests worked on at once.
        tensor_content: answer with `tensor_content` instead of the typed fields.
        health: offer the standard health service.
    """

    max_threads: int = 8
    tensor_content: bool = False
    health: bool = False
