"""The interface through which a loaded version is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from moxserve.serving.execution.context import RequestContext

__all__ = ["Runner"]


class Runner(Protocol):
    """Runs one loaded version of a model. Its coroutines belong to the server's event loop."""

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        context: RequestContext,
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `moxserve.serving.backends.base.Backend.run`.

        A request whose caller has left, or whose time is up, is not begun any more.

        Raises:
            DeadlineExceeded: the time was up before the answer was there.
            Unavailable: too much work is waiting already.
            ServingError: as of `Backend.run`.
        """
        ...

    async def run_together(
        self, signatures: Sequence[str], array: np.ndarray, context: RequestContext
    ) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Backend.run_together`, and `run` for what is raised."""
        ...

    def close(self) -> None:
        """Free what the runner holds; the backend stays the caller's. Not on the event loop.

        Nobody asks any more, but a run whose caller has left may go on: it is waited for, so that the backend can be
        closed after this.
        """
        ...
