"""Options of the REST transport; importing them does not import an HTTP server."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RestOptions"]


@dataclass(frozen=True)
class RestOptions:
    """How the REST server runs.

    Attributes:
        threads: requests worked on at once.
        timeout_s: time limit of an inference, then 504; 0 is none.
        max_body_bytes: largest body after inflating.
    """

    threads: int = 8
    timeout_s: float = 30.0
    max_body_bytes: int = 2**31 - 1
