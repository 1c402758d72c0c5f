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

    @property
    def access_log_file(self) -> str:
        """Return the path of the access log; empty when there is none, or when it is no file that can be moved."""
        return "" if self.access_log == "-" else self.access_log
