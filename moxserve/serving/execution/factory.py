"""Gives each loaded version its runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moxserve.serving.backends.base import Backend
from moxserve.serving.execution.admission import Admission
from moxserve.serving.execution.base import Runner
from moxserve.serving.execution.direct import DirectRunner
from moxserve.serving.execution.pool import MAX_WAITING, WorkPool
from moxserve.serving.metrics import ServingMetrics

if TYPE_CHECKING:
    from moxserve.serving.batching.params import BatchingOptions
    from moxserve.serving.batching.runners import BatchingRunners

__all__ = ["RunnerFactory"]


class RunnerFactory:
    """Makes the runners of one server.

    Args:
        threads: runs of a version at once, besides batches. More than there are CPUs make a runtime's own threads fight
            for them: half as much CPU again for each run of a large model.
        batching: whether and how requests are put together; None for not.
        max_delay_s: how long a request may have to wait for its turn before it is refused; 0 for any time.
        metrics: where batches are counted.
    """

    def __init__(
        self,
        threads: int,
        batching: BatchingOptions | None = None,
        max_delay_s: float = 0.0,
        metrics: ServingMetrics | None = None,
    ) -> None:
        self._threads = threads
        self._admission = Admission(max_delay_s)
        self._batching: BatchingRunners | None = None
        if batching is not None and batching.enabled:
            # Imported here, since batching is built on this package.
            from moxserve.serving.batching.runners import BatchingRunners

            self._batching = BatchingRunners(batching, self._admission, metrics)

    def make(self, backend: Backend, path: str) -> Runner:
        """Return the runner of a version.

        Args:
            backend: the loaded model.
            path: its version directory.

        Raises:
            InvalidArgument: the batching parameters in the directory are wrong.
        """
        direct = DirectRunner(backend, WorkPool(self._threads, MAX_WAITING, "moxserve-run", self._admission))
        return direct if self._batching is None else self._batching.runner(backend, path, direct)

    def close(self) -> None:
        """Begin nothing more."""
        if self._batching is not None:
            self._batching.close()
