"""Hooks for users: AggregativeSessionRunHook, the base that says how a hook behaves on several devices and what it can
do; FeedSessionRunHook; LogEvaluationMetricHook and EarlyStoppingHook, which evaluate in the middle of training.

The life of a hook in a run: `begin` (graph open), `after_create_session` (graph frozen, variables restored), then for
each step `before_run` and `after_run`, and `end` unless the run failed. `run_context.request_stop()` ends the run after
this step.

With `run(inter_mode=...)` model_fn is called twice and makes each hook twice. The hook that it made in TRAIN lives in
the run; the one that it made in the intermediate mode only lends its `monitor_info`, which the first one's `run_inter`
averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from moxserve.errors import ModelSpecError, did_you_mean
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.participants import Every

__all__ = [
    "AggregativeSessionRunHook",
    "EarlyStoppingHook",
    "FeedSessionRunHook",
    "LogEvaluationMetricHook",
    "check_hook",
    "runs_inter_mode",
]

_QUESTIONS = ("support_aggregation", "support_sync_workers", "run_inter_mode")
_STOPPING_MODES = ("auto", "max", "min")
_MORE_IS_BETTER = ("acc", "auc", "precision", "recall")


class AggregativeSessionRunHook(tf1.train.SessionRunHook):
    """A SessionRunHook that answers three questions, so that it can run on several devices and workers.

    Subclasses implement all three, each returning a bool.

    Attributes:
        monitor_info: name: scalar tensor; what `run_inter` averages. A hook whose `run_inter_mode()` is True sets it
            when it is made; where it is None, the `log_info` beside the hook is averaged.
    """

    monitor_info: Mapping[str, Any] | None = None
    _inter: Callable[[int], dict[str, float]] | None = None

    def support_aggregation(self) -> bool:
        """Whether one hook gets the values of all devices (True) or the hook of the first device runs alone (False)."""
        raise self._unanswered("support_aggregation")

    def support_sync_workers(self) -> bool:
        """Whether all workers run the hook at the same step (True) or each for itself (False)."""
        raise self._unanswered("support_sync_workers")

    def run_inter_mode(self) -> bool:
        """Whether the hook runs the intermediate mode of `run(inter_mode=...)`."""
        raise self._unanswered("run_inter_mode")

    def next_active_step(self, step: int) -> int:
        """Tell when the hook has work to do; override it, and the steps between cost nothing.

        Args:
            step: index of the step that is about to run, counted from 0 in each run.

        Returns:
            The first step, this one or a later one, around which `before_run` and `after_run` are to be called.
        """
        return step

    def run_inter(self, n_steps: int = 0) -> dict[str, float]:
        """Run the intermediate mode, from the start of its input; no variable changes. Call it in `after_run`
        or `end`, or in `after_create_session` to know where training starts.

        Args:
            n_steps: how many steps; 0 to the end of the input. The input may end before.

        Returns:
            The mean of each value of `monitor_info` over the steps that were made, each weighted by its rows.

        Raises:
            ModelSpecError: the run has no intermediate mode.
            DataError: the input gave no rows.
        """
        if self._inter is None:
            raise ModelSpecError(
                f"{type(self).__name__} cannot run an intermediate mode here",
                hint="it needs run_inter_mode() to be True, run_mode TRAIN and run(inter_mode=mox.ModeKeys.EVAL)",
            )
        return self._inter(n_steps)

    def bind_inter(self, inter: Callable[[int], dict[str, float]]) -> None:
        """Take what `run_inter` calls; the executor gives it before `begin`."""
        self._inter = inter

    def _unanswered(self, method: str) -> ModelSpecError:
        return ModelSpecError(
            f"hook {type(self).__name__} does not implement {method}()",
            hint=f"an AggregativeSessionRunHook needs {', '.join(_QUESTIONS)}, each returning True or False",
        )


class FeedSessionRunHook(AggregativeSessionRunHook):
    """Feeds the same values to placeholders at every step.

    Args:
        feed_dict: placeholder: array of a fitting shape; the dtype is converted.
    """

    def __init__(self, feed_dict: Mapping[Any, Any]) -> None:
        super().__init__()
        self.feed_dict = feed_dict

    def before_run(self, run_context: Any) -> Any:
        """Ask for the feeds; runs before each step."""
        if self.feed_dict:
            return tf1.train.SessionRunArgs(fetches=None, feed_dict=self.feed_dict)
        return None

    def support_aggregation(self) -> bool:
        """False: each device has its own placeholders."""
        return False

    def support_sync_workers(self) -> bool:
        """False: each worker feeds for itself."""
        return False

    def run_inter_mode(self) -> bool:
        """False: only the main mode is fed."""
        return False


class LogEvaluationMetricHook(AggregativeSessionRunHook):
    """Evaluates every so many epochs of training, and prints the means.

    A line is `[VALIDATION METRICS] step: 31 loss: 1.234 accuracy: 0.567`; the step is counted from 0 in each run, as on
    the lines of training. Needs `run(inter_mode=mox.ModeKeys.EVAL)`.

    Args:
        monitor_info: name: scalar tensor, the mean over one batch.
        batch_size: rows of a step, as given to `run`.
        samples_in_train: rows of an epoch. An epoch ends with the step that takes the last of them, so that 1000 rows
            in steps of 32 end at the steps 31, 63, 95...
        samples_in_eval: rows of an evaluation, rounded up to whole steps; the input may end before.
        evaluate_every_n_epochs: epochs between evaluations.
        prefix: start of the line.

    Raises:
        ModelSpecError: an argument is out of range.
    """

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
        epochs = self._whole(evaluate_every_n_epochs, "evaluate_every_n_epochs")
        period = epochs * math.ceil(self._whole(samples_in_train, "samples_in_train") / self.batch_size)
        self._every = Every(steps=period)
        self._eval_steps = math.ceil(self._whole(samples_in_eval, "samples_in_eval") / self.batch_size)

    def _whole(self, value: Any, name: str, least: int = 1) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
            raise ModelSpecError(
                f"{type(self).__name__}({name}={value!r}): expected a whole number of at least {least}"
            )
        return int(value.__index__())

    def support_aggregation(self) -> bool:
        """True: the means are over all devices."""
        return True

    def support_sync_workers(self) -> bool:
        """True: all workers evaluate after the same step."""
        return True

    def run_inter_mode(self) -> bool:
        """True: evaluations are all it does."""
        return True

    def next_active_step(self, step: int) -> int:
        """The last step of an epoch that is followed by an evaluation."""
        return self._every.next_step(step, phase=-1)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Evaluate and print."""
        values = self.run_inter(self._eval_steps)
        means = " ".join(f"{name}: {value:.3f}" for name, value in values.items())
        tf1.logging.info("%s step: %d %s", self.prefix, run_context.clock.run_step - 1, means)
        self.evaluated(values, run_context)

    def evaluated(self, values: Mapping[str, float], run_context: Any) -> None:
        """Do something about the means; nothing here.

        Args:
            values: name: mean.
            run_context: of the training step; `run_context.request_stop()` ends the run.
        """


class EarlyStoppingHook(LogEvaluationMetricHook):
    """Evaluates like LogEvaluationMetricHook, and ends the training when a value no longer gets better.

    The first evaluation has nothing to be compared with. Each later one is compared with the best before: after
    `patience` evaluations in a row that are not better than it by more than `min_delta`, the run ends, at the earliest
    with evaluation `patience + 1`. NaN is never better.

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
        super().__init__(monitor_info, batch_size, samples_in_train, samples_in_eval, evaluate_every_n_epochs, prefix)
        if monitor not in monitor_info:
            raise ModelSpecError(
                f"EarlyStoppingHook(monitor={monitor!r}) is not in monitor_info; {did_you_mean(monitor, monitor_info)}"
            )
        if isinstance(min_delta, bool) or not isinstance(min_delta, (int, float)) or not min_delta >= 0:
            raise ModelSpecError(f"EarlyStoppingHook(min_delta={min_delta!r}): expected a number, 0 or more")
        if mode not in _STOPPING_MODES:
            raise ModelSpecError(f"EarlyStoppingHook(mode={mode!r}): {did_you_mean(str(mode), _STOPPING_MODES)}")
        self.monitor = monitor
        self._min_delta = float(min_delta)
        self._patience = max(1, self._whole(patience, "patience", least=0))
        more = any(part in monitor.lower() for part in _MORE_IS_BETTER) if mode == "auto" else mode == "max"
        self._sign = 1.0 if more else -1.0
        self._best: float | None = None
        self._waited = 0

    def evaluated(self, values: Mapping[str, float], run_context: Any) -> None:
        """Judge the value, and end the run when it has been no better for too long."""
        value = values[self.monitor]
        if self._best is None or self._is_better(value, self._best):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited < self._patience:
            return
        tf1.logging.info(
            "%s %s was no better than %.3f in %d evaluation(s): training ends",
            self.prefix, self.monitor, self._best, self._waited,
        )  # fmt: skip
        run_context.request_stop()

    def _is_better(self, value: float, best: float) -> bool:
        if math.isnan(best):
            return not math.isnan(value)
        return self._sign * (value - best) > self._min_delta


def runs_inter_mode(hook: Any) -> bool:
    """Whether a checked hook runs the intermediate mode of `run(inter_mode=...)`."""
    return isinstance(hook, AggregativeSessionRunHook) and hook.run_inter_mode()


def check_hook(hook: Any) -> None:
    """Check that an element of ModelSpec.hooks can be run.

    Raises:
        ModelSpecError: it is no hook, or leaves one of the three questions open.
    """
    if isinstance(hook, type) and issubclass(hook, tf1.train.SessionRunHook):
        raise ModelSpecError(
            f"ModelSpec.hooks holds the class {hook.__name__}", hint=f"give an object: {hook.__name__}(...)"
        )
    if not isinstance(hook, tf1.train.SessionRunHook):
        raise ModelSpecError(
            f"ModelSpec.hooks holds a {type(hook).__name__}, which is no hook",
            hint="derive it from mox.AggregativeSessionRunHook",
        )
    if isinstance(hook, AggregativeSessionRunHook):
        for question in _QUESTIONS:
            answer = getattr(hook, question)()
            if not isinstance(answer, bool):
                raise ModelSpecError(f"{type(hook).__name__}.{question}() returned {answer!r}; expected True or False")
