"""BestCheckpointHook: keeps the checkpoints with the best value of what is monitored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.base import HookRun
from moxserve.tensorflow.executor.hooks.evaluation import MonitorHook

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.best import BestCheckpoints

__all__ = ["BestCheckpointHook"]


class BestCheckpointHook(MonitorHook):
    """Evaluates like LogEvaluationMetricHook, and keeps the checkpoints with the best values in `log_dir/best`.

    The checkpoint is of the very state that was evaluated, whatever `save_model_steps` and `save_model_secs` say of the
    others, and is not removed with the old ones of these. `checkpoint_path=log_dir/best` means the best; the file
    `best.json` there tells the values of all. NaN is never kept, and of equal values the earlier. The line of an
    evaluation is printed by hooks that print it, and shared with them: `[BestCheckpoint] step: 63 accuracy: 0.934 is
    the best so far: runs/best/model.ckpt-64`.

    Args:
        monitor_info: as for LogEvaluationMetricHook; all values are kept in `best.json`.
        monitor: the name in `monitor_info` that is judged.
        batch_size: as for LogEvaluationMetricHook.
        samples_in_train: likewise.
        samples_in_eval: likewise.
        evaluate_every_n_epochs: likewise.
        keep: how many checkpoints stay.
        prefix: start of the line.
        mode: as for EarlyStoppingHook.
        export_best: `run(export_model=...)` exports the best checkpoint instead of the last.

    Raises:
        ModelSpecError: an argument is out of range.
    """

    def __init__(
        self,
        monitor_info: Mapping[str, Any],
        monitor: str,
        batch_size: int,
        samples_in_train: int,
        samples_in_eval: int,
        evaluate_every_n_epochs: int = 1,
        keep: int = 1,
        prefix: str = "[BestCheckpoint]",
        mode: str = "auto",
        export_best: bool = False,
    ) -> None:
        super().__init__(
            monitor_info, monitor, batch_size, samples_in_train, samples_in_eval, evaluate_every_n_epochs,
            prefix=prefix, mode=mode,
        )  # fmt: skip
        self._keep = self._whole(keep, "keep")
        self.export_best = bool(export_best)
        self._kept: BestCheckpoints | None = None

    @property
    def best(self) -> str | None:
        """The best checkpoint; None before the first, and on a worker that writes none."""
        return None if self._kept is None else self._kept.prefix

    def join_run(self, run: HookRun) -> None:
        """Find out where checkpoints go.

        Raises:
            ModelSpecError: the run writes none.
        """
        super().join_run(run)
        if run.decides and run.checkpointer is None:
            raise ModelSpecError("BestCheckpointHook needs a folder for checkpoints", hint="run(log_dir='runs/1', ...)")

    def begin(self) -> None:
        """Look for the best checkpoints of earlier runs."""
        from moxserve.tensorflow.executor.best import BestCheckpoints  # whose imports lead back to this package

        checkpointer = self._host.checkpointer if self._host is not None else None
        if checkpointer is not None:
            self._kept = BestCheckpoints(checkpointer, self._keep, self.monitor, self._judge.more)

    def report(self, values: Mapping[str, float], run_context: Any) -> None:
        """Print nothing yet: only what is kept is worth a line."""

    def evaluated(self, values: Mapping[str, float], run_context: Any) -> None:
        """Keep a checkpoint if the value is one of the best."""
        clock = run_context.clock
        kept = self._kept and self._kept.offer(run_context.session, clock.global_step, values)
        if kept:
            rank = "the best" if kept == self.best else f"among the best {self._keep}"
            tf1.logging.info(
                "%s step: %d %s: %.3f is %s so far: %s",
                self.prefix, clock.run_step - 1, self.monitor, values[self.monitor], rank, kept,
            )  # fmt: skip

    def save_state(self) -> None:
        """Nothing: the folder knows."""
