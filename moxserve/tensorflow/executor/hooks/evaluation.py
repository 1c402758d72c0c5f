"""LogEvaluationMetricHook: evaluations every so many epochs of training; MonitorHook: judges one of the values.

With `run(inter_mode=...)` model_fn is called twice and makes each hook twice. The hook that it made in TRAIN lives in
the run; the one that it made in the intermediate mode only lends its `monitor_info`, which the first one's `run_inter`
averages. Where several workers train, the chief evaluates and decides, and the others wait for what it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from moxserve.errors import ModelSpecError, did_you_mean
from moxserve.talk import Event
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.epochs import samples_in_epoch
from moxserve.tensorflow.executor.hooks.base import AggregativeSessionRunHook, HookRun
from moxserve.tensorflow.executor.hooks.judge import Judge, more_is_better
from moxserve.tensorflow.executor.participants import Every

__all__ = ["LogEvaluationMetricHook", "MonitorHook"]


class LogEvaluationMetricHook(AggregativeSessionRunHook):
    """Evaluates every so many epochs of training, and prints the means.

    A line is `[VALIDATION METRICS] step: 31 loss: 1.234 accuracy: 0.567`; the step is counted from 0 in each run, as on
    the lines of training. Needs `run(inter_mode=mox.ModeKeys.EVAL)`.

    Args:
        monitor_info: name: scalar tensor, the mean over one batch.
        batch_size: rows of a step on one device, as given to `run`. With `auto_batch` that of `run` holds.
        samples_in_train: rows of an epoch, over all devices and workers. An epoch ends with the step that takes the
            last of them, so that 1000 rows in steps of 32 end at the global steps 32, 64, 96...
        samples_in_eval: rows of an evaluation, rounded up to whole steps; the input may end before. The flags
            samples_per_epoch and samples_per_epoch_eval override the two.
        evaluate_every_n_epochs: epochs between evaluations.
        prefix: start of the line.

    Raises:
        ModelSpecError: an argument is out of range.
    """

    counts_global_steps = True
    shares_evaluations = True

    def __init__(
        self,
        monitor_info: Mapping[str, Any],
        batch_size: int,
        samples_in_train: int,
        samples_in_eval: int,
        evaluate_every_n_epochs: int = 1,
        prefix: str = "[VALIDATION METRICS]",
    ) -> None:
        super().__init__()
        if not isinstance(monitor_info, Mapping) or not monitor_info:
            raise ModelSpecError(
                f"{type(self).__name__}(monitor_info={monitor_info!r}): expected a dict of name: scalar tensor",
                hint="monitor_info={'loss': loss, 'accuracy': accuracy}",
            )
        self.monitor_info = dict(monitor_info)
        self.batch_size = self._whole(batch_size, "batch_size")
        self.prefix = prefix
        self._epochs = self._whole(evaluate_every_n_epochs, "evaluate_every_n_epochs")
        self._samples_in_train = samples_in_epoch(self._whole(samples_in_train, "samples_in_train"))
        self._samples_in_eval = samples_in_epoch(self._whole(samples_in_eval, "samples_in_eval"), training=False)
        self._set_rows(self.batch_size, self.batch_size)
        self._due: int | None = None

    def _whole(self, value: Any, name: str, least: int = 1) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
            raise ModelSpecError(
                f"{type(self).__name__}({name}={value!r}): expected a whole number of at least {least}"
            )
        return int(value.__index__())

    def _fraction(self, value: Any, name: str, most: float = math.inf) -> float:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= most:
            limit = "0 or more" if most == math.inf else f"from 0 to {most:g}"
            raise ModelSpecError(f"{type(self).__name__}({name}={value!r}): expected a number, {limit}")
        return float(value)

    def _set_rows(self, of_training: int, of_evaluation: int) -> None:
        self._period = self._epochs * math.ceil(self._samples_in_train / of_training)
        self._eval_steps = math.ceil(self._samples_in_eval / of_evaluation)

    def support_aggregation(self) -> bool:
        """True: the means are over all devices."""
        return True

    def support_sync_workers(self) -> bool:
        """True: all workers wait for the evaluation after the same step."""
        return True

    def run_inter_mode(self) -> bool:
        """True: evaluations are all it does."""
        return True

    def join_run(self, run: HookRun) -> None:
        """Count epochs in the rows that the job really takes a step: those of all devices, of all workers."""
        super().join_run(run)
        rows = run.batch_size if run.makes_batches else self.batch_size
        if rows != self.batch_size:
            tf1.logging.warning(
                "%s(batch_size=%d): the run makes steps of batch_size=%d, and epochs are counted in these",
                type(self).__name__, self.batch_size, rows,
            )  # fmt: skip
        self._set_rows(rows * run.replicas_per_step, rows * run.workers.topology.num_devices)

    def next_active_step(self, step: int) -> int:
        """The last step of an epoch that is followed by an evaluation."""
        if self._host is None or not self._host.steps_apart:
            return Every(steps=self._period).next_step(step, phase=-1)
        # The others' steps count, too, and come in leaps: the next step after the end of an epoch has to do.
        if self._due is None:
            self._due = step - step % self._period + self._period - 1
        return max(step, self._due)

    def before_run(self, run_context: Any) -> None:
        """Announce the evaluation, so that it can be one with those of other hooks."""
        announce = getattr(self._inter, "announce", None)
        if announce is not None:
            announce(self._eval_steps)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Evaluate and print, on the worker that decides."""
        self._due = None
        if self._host is not None and not self._host.decides:
            return
        values = self.run_inter(self._eval_steps)
        self.report(values, run_context)
        self.evaluated(values, run_context)

    def report(self, values: Mapping[str, float], run_context: Any) -> None:
        """Print the line of an evaluation."""
        means = " ".join(f"{name}: {value:.3f}" for name, value in values.items())
        step = run_context.clock.run_step - 1
        facts = {"event": "validation", "step": step, "global_step": run_context.clock.global_step - 1}
        tf1.logging.info("%s", Event(f"{self.prefix} step: {step} {means}", {**facts, "values": dict(values)}))

    def evaluated(self, values: Mapping[str, float], run_context: Any) -> None:
        """Do something about the means; nothing here.

        Args:
            values: name: mean.
            run_context: of the training step; `run_context.request_stop()` ends the run.
        """


class MonitorHook(LogEvaluationMetricHook):
    """Evaluates like LogEvaluationMetricHook, and judges one of the values. What follows from that, subclasses say.

    Args:
        monitor_info: as for LogEvaluationMetricHook.
        monitor: the name in `monitor_info` that is judged.
        batch_size: as for LogEvaluationMetricHook.
        samples_in_train: likewise.
        samples_in_eval: likewise.
        evaluate_every_n_epochs: likewise.
        min_delta: what counts as better, 0 or more.
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
        prefix: str = "",
        mode: str = "auto",
    ) -> None:
        super().__init__(monitor_info, batch_size, samples_in_train, samples_in_eval, evaluate_every_n_epochs, prefix)
        name = type(self).__name__
        if monitor not in monitor_info:
            raise ModelSpecError(
                f"{name}(monitor={monitor!r}) is not in monitor_info; {did_you_mean(str(monitor), monitor_info)}"
            )
        self.monitor = monitor
        self._judge = Judge(monitor, more_is_better(monitor, mode, name), self._fraction(min_delta, "min_delta"))

    def save_state(self) -> Mapping[str, Any] | None:
        """The best value, and how long ago it was."""
        return self._judge.state()

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; not when something else was monitored."""
        if not self._judge.restore(state):
            tf1.logging.warning(
                "%s monitors %s (%s), and did monitor %s (%s) before: it begins anew",
                type(self).__name__,
                self.monitor,
                _MODE[self._judge.more],
                state["monitor"],
                _MODE[bool(state["more"])],
            )


_MODE = {True: "max", False: "min"}
