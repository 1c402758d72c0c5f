"""What is known of a request besides its data."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from moxserve.errors import DeadlineExceeded

__all__ = ["RequestContext"]


@dataclass(slots=True)
class RequestContext:
    """How long a caller waits, and how to tell that it has left.

    Attributes:
        deadline: when the caller stops waiting, by `time.monotonic`, in s; infinite for never.
        gone: completes when the caller has left; None where that cancels the coroutine, as gRPC does.
        request_id: that the caller gave or that was made for it; empty for none.
    """

    deadline: float = math.inf
    gone: Callable[[], Awaitable[object]] | None = None
    request_id: str = ""

    def check(self) -> None:
        """Make sure that the caller still waits.

        Raises:
            DeadlineExceeded: it does not.
        """
        if self.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the request was begun")
