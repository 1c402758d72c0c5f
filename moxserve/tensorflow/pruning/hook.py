"""The hook that tells at the end of a training what was pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks import AggregativeSessionRunHook
from moxserve.tensorflow.executor.participants import NEVER
from moxserve.tensorflow.pruning.masks import Mask
from moxserve.tensorflow.pruning.options import Pruning

__all__ = ["SparsityHook"]


class SparsityHook(AggregativeSessionRunHook):
    """Logs the share of zeros of each kernel and of all together when training ends.

    Args:
        masks: of all kernels.
        options: the schedule.
    """

    def __init__(self, masks: Sequence[Mask], options: Pruning) -> None:
        self._masks = list(masks)
        self._options = options

    def begin(self) -> None:
        """Build what is told; runs while the graph is open."""
        self._counts = [
            (mask.weights.op.name, mask.weights.shape.num_elements(), tf1.count_nonzero(mask.weights.read_value()))
            for mask in self._masks
        ]
        self._step = tf1.train.get_or_create_global_step().read_value()

    def next_active_step(self, step: int) -> int:
        """Never: the console's lines tell the sparsity on the way."""
        return NEVER

    def end(self, session: Any) -> None:
        """Tell; runs when training ended well."""
        left, step = session.run([[count for _, _, count in self._counts], self._step])
        for (name, size, _), kept in zip(self._counts, left, strict=True):
            tf1.logging.info("pruning: %s: %.1f %% of %s weights are zero", name, _percent(kept, size), f"{size:,}")
        total = sum(size for _, size, _ in self._counts)
        tf1.logging.info(
            "pruning: together %.1f %% of %s weights are zero", _percent(np.sum(left), total), f"{total:,}"
        )
        if step < self._options.end_step:
            tf1.logging.warning(
                "pruning: training ended at step %d, the schedule goes on to step %d: %.1f %% is its goal",
                step,
                self._options.end_step,
                100 * self._options.sparsity,
            )

    def support_aggregation(self) -> bool:
        """False: the weights are the same on all devices."""
        return False

    def support_sync_workers(self) -> bool:
        """False: each worker tells for itself."""
        return False

    def run_inter_mode(self) -> bool:
        """False: evaluations do not change weights."""
        return False


def _percent(kept: Any, size: int) -> float:
    return 100.0 * (1.0 - float(kept) / size)
