"""Gives each loaded version its runner."""

from __future__ import annotations

from moxserve.serving.backends.base import Backend
from moxserve.serving.execution.base import Runner
from moxserve.serving.execution.direct import DirectRunner
from moxserve.serving.execution.pool import WorkPool

__all__ = ["RunnerFactory"]

_MAX_WAITING = 1000


class RunnerFactory:
    """Makes the runners of one server, and owns the threads that they share.

    Args:
        threads: runs at once, of all models together.
    """

    def __init__(self, threads: int) -> None:
        self._pool = WorkPool(threads, _MAX_WAITING, "moxserve-run")

    def make(self, backend: Backend, path: str) -> Runner:  # noqa: ARG002 - a version may bring its own parameters
        """Return the runner of a version.

        Args:
            backend: the loaded model.
            path: its version directory.
        """
        return DirectRunner(backend, self._pool)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.close()
