"""`SimpleSyncOptimizer`: workers of an asynchronous run meet at every step."""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper, Pairs, apart, count_step, replicas

__all__ = ["SimpleSyncOptimizer"]


class SimpleSyncOptimizer(OptimizerWrapper):
    """Applies the mean of all workers' gradients once, at each step of a run with `sync_replicas=False`.

    In a synchronous run, and in a single process, the gradients are that mean already, and it changes nothing. It is
    the outermost wrapper of the scripts that set `sync_replicas=False` and `chief_inc_global_step=True`.

    Args:
        optimizer: the one inside.
        num_workers: checked where given; the run knows it.
        task_index: taken for the sake of scripts that give it; the run knows it.

    Raises:
        UsageError: `num_workers` is not what the run has.
    """

    kind = "simple_sync"
    meets = True
    averages = True

    def __init__(self, optimizer: Any, num_workers: int | None = None, task_index: int | None = None) -> None:
        super().__init__(optimizer)
        if num_workers is not None and num_workers != replicas():
            raise UsageError(
                f"SimpleSyncOptimizer: num_workers={num_workers}, but --worker_hosts names {replicas()}",
                hint="leave num_workers out",
            )

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        if not apart():
            return self._optimizer.apply_gradients(pairs, global_step=global_step)
        return count_step(global_step, [self._apply_together(pairs)])
