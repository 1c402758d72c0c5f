"""A trial: a training of few steps with some hyper-parameters, a `mox.run` of its own; it leaves nothing behind."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any

from moxserve.errors import ModelSpecError, UsageError, did_you_mean
from moxserve.tensorflow.auto.curve import Curve
from moxserve.tensorflow.auto.params import ParamSpec, giving
from moxserve.tensorflow.executor import AggregativeSessionRunHook, ModeKeys, get_flag, set_flag
from moxserve.tensorflow.executor.calls import call_with_mode
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.hooks import runs_inter_mode
from moxserve.tensorflow.executor.run import run as mox_run
from moxserve.tensorflow.executor.spec import ModelSpec

__all__ = ["Functions", "Metric", "ModelSize", "Range", "Trial", "TrialRuns"]


LARGE_PARAMETERS = 1_000_000


class ModelSize(Enum):
    """How large a model is: larger ones are searched at smaller learning rates.

    Attributes:
        SMALL: rates from 1e-4 to 10.
        LARGE: rates from 1e-5 to 1; what a million parameters or more are taken for.
    """

    SMALL = (1e-4, 10.0)
    LARGE = (1e-5, 1.0)


@dataclass(frozen=True)
class Functions:
    """What a user gives, and how it is fed.

    Attributes:
        input_fn: as of `mox.run`.
        model_fn: as of `mox.run`.
        optimizer_fn: as of `mox.run`.
        batch_size: as of `mox.run`; `batch_size` among the parameters wins.
        auto_batch: as of `mox.run`.
        checkpoint_path: where trials start from; None for initial values.
    """

    input_fn: Any
    model_fn: Any
    optimizer_fn: Any
    batch_size: int
    auto_batch: bool
    checkpoint_path: str | None = None


@dataclass(frozen=True)
class Metric:
    """By what trials are judged.

    Attributes:
        name: in `log_info`.
        larger_is_better: True for an accuracy, False for a loss.
        every: steps between two points.
        window: points that are averaged.
        max_thres: as of `Curve`.
    """

    name: str
    larger_is_better: bool
    every: int = 1
    window: int = 50
    max_thres: int = 10

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: one is out of range.
        """
        if self.window < 1 or self.max_thres < 0:
            raise UsageError(
                f"mox.auto.search: window={self.window}, max_thres={self.max_thres}: expected 1 and 0 at least"
            )

    def curve(self) -> Curve:
        """An empty curve."""
        return Curve(self.larger_is_better, self.window, self.max_thres)


@dataclass(frozen=True)
class Range:
    """Learning rates of a range test.

    Attributes:
        first: rate at its first step; None for one that goes with the model's size.
        last: rate at its last step; None for one that goes with the model's size.
        warmup_steps: steps before it.
        warmup_lr: rate of these.
        size: of the model; None to count its parameters.
    """

    first: float | None
    last: float | None
    warmup_steps: int = 0
    warmup_lr: float = 0.01
    size: ModelSize | None = None

    def for_graph(self) -> Range:
        """Fill in what goes with the size of the model of the current graph.

        Raises:
            UsageError: the bound that was given does not go with the other one.
        """
        size = self.size
        if size is None:
            count = sum(variable.shape.num_elements() for variable in tf1.trainable_variables())
            size = ModelSize.LARGE if count >= LARGE_PARAMETERS else ModelSize.SMALL
        first, last = self.first or size.value[0], self.last or size.value[1]
        if not first < last:
            raise UsageError(
                f"mox.auto.search: learning rates from {first:g} to {last:g}, where a {size.name.lower()} model's go "
                f"from {size.value[0]:g} to {size.value[1]:g}",
                hint="give both init_learning_rate and end_learning_rate",
            )
        return replace(self, first=first, last=last, size=size)

    def tensor(self, steps: int) -> Any:
        """The rate as a tensor of the global step; `for_graph` gave the range."""
        first, last = self._span()
        step = tf.cast(tf.convert_to_tensor(tf1.train.get_or_create_global_step()), tf.float64)
        share = tf.clip_by_value((step - self.warmup_steps) / max(1, steps - self.warmup_steps - 1), 0.0, 1.0)
        rate = first * tf.pow(tf.constant(last / first, tf.float64), share)
        return tf.cast(tf.where(step < self.warmup_steps, tf.constant(self.warmup_lr, tf.float64), rate), tf.float32)

    def at(self, step: int, steps: int) -> float:
        """The rate as a number."""
        first, last = self._span()
        share = (step - self.warmup_steps) / max(1, steps - self.warmup_steps - 1)
        return float(first * (last / first) ** min(1.0, max(0.0, share)))

    def _span(self) -> tuple[float, float]:
        if self.first is None or self.last is None:
            raise UsageError("the range of learning rates is not known before there is a model")
        return self.first, self.last


@dataclass
class Trial:
    """What came of some hyper-parameters.

    Attributes:
        params: with the learning rate that was found for them.
        score: the metric, larger ones better (a loss counts negative); minus infinity where training diverged.
        steps: training steps that were made, of all its runs.
        seconds: wall time.
        curve: the metric while it trained.
        note: what was special: `diverged`, or empty.
    """

    params: ParamSpec
    score: float
    steps: int = 0
    seconds: float = 0.0
    curve: Curve = field(default_factory=lambda: Curve(True))
    note: str = ""


class _Watch(AggregativeSessionRunHook):
    """Records a metric, and ends a trial that has nothing to say any more."""

    def __init__(self, value: Any, curve: Curve, metric: Metric, skip: int) -> None:
        self._value, self._curve, self._every, self._skip = value, curve, metric.every, skip
        self._step = 0

    def next_active_step(self, step: int) -> int:
        """Every so many steps."""
        self._step = step + -step % self._every
        return self._step

    def before_run(self, context: Any) -> Any:
        """Ask for the metric."""
        return tf1.train.SessionRunArgs(self._value)

    def after_run(self, context: Any, values: Any) -> None:
        """Record it; there is nothing to be learned of what follows a loss that is no number."""
        if self._step >= self._skip:
            self._curve.add(self._step, float(values.results))
        if not math.isfinite(float(values.results)):
            context.request_stop()

    def support_aggregation(self) -> bool:
        """True: the mean over all devices."""
        return True

    def support_sync_workers(self) -> bool:
        """False: trials have a single process."""
        return False

    def run_inter_mode(self) -> bool:
        """False: evaluations are runs of their own."""
        return False


class TrialRuns:
    """Makes the runs of trials.

    Args:
        functions: the user's.
        metric: what is recorded.
        steps: of a training.
        eval_steps: of an evaluation.
        seed: of every run, so that trials differ in their parameters only.
        log_every: as of `mox.run`.
    """

    def __init__(
        self, functions: Functions, metric: Metric, steps: int, eval_steps: int, *, seed: int, log_every: int
    ) -> None:
        self._functions, self._metric = functions, metric
        self._steps, self._eval_steps = steps, eval_steps
        self._seed, self._log_every = seed, log_every
        self._rates = Range(1.0, 1.0)  # of the last range test

    def range_test(self, params: ParamSpec, rates: Range) -> Trial:
        """Train once while the learning rate grows; the trial has a tenth of the largest rate that did well."""
        began = time.monotonic()
        curve, made = self._train(params, rates, None)
        rates, edge = self._rates, curve.edge()
        if edge < 0:
            return Trial(params, -math.inf, made, time.monotonic() - began, curve, "diverged")
        rate = max(rates.at(curve.steps[edge], self._steps) / 10.0, rates.at(0, self._steps))
        found = params.replace(learning_rate=float(f"{rate:.3g}"))
        return Trial(found, curve.score(), made, time.monotonic() - began, curve)

    def training(self, params: ParamSpec, *, evaluated: bool) -> Trial:
        """Train once as it is; judged by the end of the training, or by an evaluation after it."""
        began = time.monotonic()
        if not evaluated:
            curve, made = self._train(params, None, None)
            score = curve.last()
        else:
            with tempfile.TemporaryDirectory(prefix="moxserve-trial-") as folder:
                curve, made = self._train(params, None, folder)
                score = -math.inf if curve.diverged else self._evaluate(params, folder)
        note = "" if math.isfinite(score) else "diverged"
        return Trial(params, score, made, time.monotonic() - began, curve, note)

    def _train(self, params: ParamSpec, rates: Range | None, folder: str | None) -> tuple[Curve, int]:
        """Train; gives the curve, and how many steps were made."""
        functions, curve = self._functions, self._metric.curve()
        model_fn = giving(functions.model_fn, params, "model_fn")

        def watched(inputs: Any, mode: str) -> Any:
            spec = call_with_mode(model_fn, (inputs,), mode, "model_fn")
            if not isinstance(spec, ModelSpec):
                return spec  # the run says what is wrong with it
            # A trial is judged here, and as long as the others.
            spec.hooks = [hook for hook in spec.hooks if not runs_inter_mode(hook)]
            spec.hooks.append(
                _Watch(self._value(spec), curve, self._metric, 0 if rates is None else rates.warmup_steps)
            )
            return spec

        with self._isolated():
            result = mox_run(
                input_fn=giving(functions.input_fn, params, "input_fn"),
                model_fn=watched,
                optimizer_fn=self._optimizers(params, rates),
                run_mode=ModeKeys.TRAIN,
                batch_size=params.get("batch_size", functions.batch_size),
                auto_batch=functions.auto_batch,
                log_dir=folder,
                max_number_of_steps=self._steps,
                checkpoint_path=functions.checkpoint_path,
                log_every_n_steps=self._log_every,
                save_summary_steps=0,
            )
        return curve, result.local_steps

    def _optimizers(self, params: ParamSpec, rates: Range | None) -> Any:
        """Give the optimizer functions of a run; those of a range test get the rate as a tensor."""

        def make(function: Any) -> Any:
            if rates is None:
                return giving(function, params, "optimizer_fn")()
            self._rates = rates.for_graph()
            return giving(function, params.replace(learning_rate=self._rates.tensor(self._steps)), "optimizer_fn")()

        given = self._functions.optimizer_fn
        return [partial(make, one) for one in given] if isinstance(given, (list, tuple)) else partial(make, given)

    def _evaluate(self, params: ParamSpec, folder: str) -> float:
        functions = self._functions
        with self._isolated():
            result = mox_run(
                input_fn=giving(functions.input_fn, params, "input_fn"),
                model_fn=giving(functions.model_fn, params, "model_fn"),
                run_mode=ModeKeys.EVAL,
                batch_size=params.get("batch_size", functions.batch_size),
                auto_batch=functions.auto_batch,
                max_number_of_steps=self._eval_steps,
                checkpoint_path=folder,
                log_every_n_steps=self._log_every,
            )
        value = result.metrics.get(self._metric.name, math.nan)
        if not math.isfinite(value):
            return -math.inf
        return value if self._metric.larger_is_better else -value

    def _value(self, spec: Any) -> Any:
        """Find the metric in a ModelSpec."""
        name, known = self._metric.name, getattr(spec, "log_info", None) or {}
        if name not in known:
            raise ModelSpecError(
                f"mox.auto.search judges trials by log_info[{name!r}]; {did_you_mean(name, known)}",
                hint="name it with acc_name, or with loss_name and by_acc=False",
            )
        return known[name]

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """A run with the trials' seed, that begins to count at 0, and leaves the flags as they were."""
        before = get_flag("checkpoint_exclude_patterns")
        set_flag("checkpoint_exclude_patterns", ",".join(filter(None, [before, "global_step"])))
        try:
            with tf1.Graph().as_default():
                tf1.set_random_seed(self._seed)
                yield
        finally:
            set_flag("checkpoint_exclude_patterns", before)
