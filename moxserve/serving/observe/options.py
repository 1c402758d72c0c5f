"""What an operator can ask for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ObserveOptions"]


@dataclass(frozen=True)
class ObserveOptions:
    """Where requests are told.

    Attributes:
        access_log: file that gets a line of JSON for each request; `-` is stdout, empty is none.
        tracing: whether each request becomes a span of OpenTelemetry.
    """

    access_log: str = ""
    tracing: bool = False
