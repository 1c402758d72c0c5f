"""EarlyStoppingHook ends a training that gets no better; PlateauLREarlyStoppingHook lowers its learning rate first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.evaluation import MonitorHook
from moxserve.tensorflow.executor.hooks.lr_scale import LearningRateScale

__all__ = ["EarlyStoppingHook", "PlateauLREarlyStoppingHook"]


class EarlyStoppingHook(MonitorHook):
    """Evaluates like LogEvaluationMetricHook, and ends the training when a value no longer gets better.

    The first evaluation has nothing to be compared with. Each later one is compared with the best before: after
    `patience` evaluations in a row that are not better than it by more than `min_delta`, the run ends, at the earliest
    with evaluation `patience + 1`. NaN is never better. A run that goes on from a checkpoint of `log_dir` goes on
    counting; when training had been ended, it ends again at once.

    Args:
        monitor_info: as for LogEvaluationMetricHook.
        monitor: the name in `monitor_info` that is judged.
        batch_size: as for LogEvaluationMetricHook.
        samples_in_train: likewise.
        samples_in_eval: likewise.
        evaluate_every_n_epochs: likewise.
        min_delta: what counts as better, 0 or more.
        patience: how many evaluations in a row may be no better; 0 is as 1.
        prefix: start of the line.
        mode: `max`, `min`, or `auto`: more is better for names with acc, auc, precision or recall in them, less is
            for all others.

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
        min_delta: float = 0.0,
        patience: int = 0,
        prefix: str = "[EarlyStopping]",
        mode: str = "auto",
    ) -> None:
        super().__init__(
            monitor_info, monitor, batch_size, samples_in_train, samples_in_eval, evaluate_every_n_epochs, min_delta,
            prefix, mode,
        )  # fmt: skip
        self._patience = max(1, self._whole(patience, "patience", least=0))

    def evaluated(self, values: Mapping[str, float], run_context: Any) -> None:
        """Judge the value, and end the run when it has been no better for too long."""
        self._judge.take(values[self.monitor])
        if self._judge.waited < self._patience:
            return
        tf1.logging.info(
            "%s %s was no better than %.3f in %d evaluation(s): training ends",
            self.prefix, self.monitor, self._judge.best, self._judge.waited,
        )  # fmt: skip
        run_context.request_stop()

    def has_ended_training(self) -> bool:
        """Whether it had been no better for too long already."""
        return self._judge.waited >= self._patience


class PlateauLREarlyStoppingHook(MonitorHook):
    """Evaluates like LogEvaluationMetricHook, lowers the learning rate when a value no longer gets better, and ends the
    training when that has not helped several times in a row.

    `patience` evaluations in a row that are not better than the best so far by more than `min_delta` are a plateau. A
    plateau multiplies the learning rate by `factor`, whatever schedule it follows; the `max_plateaus`-th one without
    anything better in between ends the run instead. The multiplier is the variable `mox/lr_scale`: it is saved in
    checkpoints, and like the counts here it is taken up by a run that goes on from a checkpoint of `log_dir`. The rule
    is that of Keras' ReduceLROnPlateau, with an end.

    Args:
        monitor_info: as for LogEvaluationMetricHook.
        monitor: the name in `monitor_info` that is judged.
        batch_size: as for LogEvaluationMetricHook.
        samples_in_train: likewise.
        samples_in_eval: likewise.
        evaluate_every_n_epochs: likewise.
        min_delta: what counts as better, 0 or more.
        patience: evaluations in a row that are no better and make a plateau; 0 is as 1.
        prefix: start of the line.
        mode: as for EarlyStoppingHook.
        factor: what the learning rate is multiplied by, above 0 and below 1.
        max_plateaus: which plateau in a row ends the training; 1 never lowers the learning rate.
        cooldown: evaluations after the learning rate was lowered that are not counted.
        min_lr: the learning rate is not lowered further than this, 0 or more.

    Raises:
        ModelSpecError: an argument is out of range.
    """

    scales_learning_rate = True

    def __init__(
        self,
        monitor_info: Mapping[str, Any],
        monitor: str,
        batch_size: int,
        samples_in_train: int,
        samples_in_eval: int,
        evaluate_every_n_epochs: int = 1,
        min_delta: float = 0.0,
        patience: int = 0,
        prefix: str = "[PlateauLREarlyStopping]",
        mode: str = "auto",
        factor: float = 0.1,
        max_plateaus: int = 3,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(
            monitor_info, monitor, batch_size, samples_in_train, samples_in_eval, evaluate_every_n_epochs, min_delta,
            prefix, mode,
        )  # fmt: skip
        self._patience = max(1, self._whole(patience, "patience", least=0))
        self._factor = self._fraction(factor, "factor", most=1.0)
        if self._factor in (0.0, 1.0):
            raise ModelSpecError(f"PlateauLREarlyStoppingHook(factor={factor!r}): expected a number between 0 and 1")
        self._max_plateaus = self._whole(max_plateaus, "max_plateaus")
        self._cooldown = self._whole(cooldown, "cooldown", least=0)
        self._min_lr = self._fraction(min_lr, "min_lr")
        self._plateaus = self._cooling = 0
        self._scale: LearningRateScale | None = None

    def begin(self) -> None:
        """Find the multiplier, while the graph is open."""
        self._scale = LearningRateScale()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Check that all workers will take the chief's decisions at the same steps.

        Raises:
            ModelSpecError: some would not be there when the chief tells.
        """
        host = self._host
        if host is not None and not host.workers.all_same(session, self._period):
            raise ModelSpecError(
                f"PlateauLREarlyStoppingHook evaluates every {self._period} steps on worker "
                f"{host.workers.topology.index}, and at other steps on other workers",
                hint="give all workers the same arguments; samples_in_train are those of all workers together",
            )

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Evaluate and decide; on other workers than the chief take what that one has decided."""
        try:
            super().after_run(run_context, run_values)
        finally:  # also when the evaluation is broken off: the others wait
            if self._host is not None and self._scale is not None and self._host.shares_decisions:
                self._scale.follow(run_context.session, self._host)

    def evaluated(self, values: Mapping[str, float], run_context: Any) -> None:
        """Judge the value; at a plateau lower the learning rate or end the run."""
        judge = self._judge
        if judge.take(values[self.monitor]):
            self._plateaus = 0
        if self._cooling:
            self._cooling -= 1
            judge.waited = 0
        if judge.waited < self._patience:
            return
        self._plateaus += 1
        plateau = (
            f"{self.prefix} {self.monitor} was no better than {judge.best:.3f} in {judge.waited} evaluation(s), "
            f"plateau {self._plateaus} of {self._max_plateaus}"
        )
        if self._plateaus >= self._max_plateaus:
            tf1.logging.info("%s: training ends", plateau)
            run_context.request_stop()
            return
        judge.waited, self._cooling = 0, self._cooldown
        tf1.logging.info("%s: %s", plateau, self._lower(run_context.session))

    def _lower(self, session: Any) -> str:
        if self._scale is None:
            raise ModelSpecError("PlateauLREarlyStoppingHook was run without its begin()")
        scale, rates = self._scale.lower(session, self._factor, self._min_lr)
        now = f" to {', '.join(f'{rate:.3g}' for rate in rates)}" if rates else ""
        return f"learning rate lowered{now} (x {scale:.3g} in all)"

    def save_state(self) -> Mapping[str, Any]:
        """The best value, how long ago it was, and what was done about it."""
        return {**self._judge.state(), "plateaus": self._plateaus, "cooling": self._cooling}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; not when something else was monitored."""
        super().restore_state(state)
        if self._judge.best is not None:
            self._plateaus, self._cooling = int(state["plateaus"]), int(state["cooling"])

    def has_ended_training(self) -> bool:
        """Whether there had been too many plateaus already."""
        return self._plateaus >= self._max_plateaus
