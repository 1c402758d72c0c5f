"""Gives each loaded version its runner, when requests are put together at all."""

from __future__ import annotations

from moxserve.serving.backends.base import Backend
from moxserve.serving.batching.params import BatchingOptions, version_parameters
from moxserve.serving.batching.runner import BatchingRunner
from moxserve.serving.batching.scheduler import BatchThreads
from moxserve.serving.cpus import cpus
from moxserve.serving.execution.admission import Admission
from moxserve.serving.execution.base import Runner
from moxserve.serving.metrics import ServingMetrics

__all__ = ["BatchingRunners"]


class BatchingRunners:
    """The batching of a server: its threads, and a runner for each version.

    Args:
        options: how requests are put together; they must be enabled.
        admission: refuses requests that would wait too long.
        metrics: where batches are counted.
    """

    def __init__(self, options: BatchingOptions, admission: Admission, metrics: ServingMetrics | None = None) -> None:
        self._options = options
        self._metrics = metrics
        given = options.parameters
        count, name = (given.num_batch_threads, given.thread_pool_name) if given else (options.threads, "batch_threads")
        self._threads = BatchThreads(count or cpus(), name, admission)

    def runner(self, backend: Backend, path: str, direct: Runner) -> Runner:
        """Return the runner of a version.

        Args:
            backend: that was loaded.
            path: the version directory, which may hold parameters.
            direct: runs what cannot be put together; returned itself for a version that shall not be batched.

        Raises:
            InvalidArgument: the version's own parameters are wrong.
        """
        parameters = self._options.parameters
        if self._options.per_model:
            parameters = version_parameters(path)
            if parameters is None:
                return direct
        return BatchingRunner(
            backend, direct, self._threads, parameters, max_waiting=self._options.max_waiting, metrics=self._metrics
        )

    def close(self) -> None:
        """End the threads, after the last run."""
        self._threads.close()
