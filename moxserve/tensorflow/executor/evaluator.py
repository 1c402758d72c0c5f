"""The evaluator of a job: evaluates each new checkpoint in `log_dir` beside the training, and ends after it.

It is the process with `job_name=evaluator`. The script is the same: its `mox.run(TRAIN)` is this there. What was
evaluated stands in `log_dir/eval/evaluations.json`, so that an evaluator which is started again goes on; the curves are
beside it. A checkpoint that the training drops before its turn comes is left out.

The training has ended when its chief said so in `log_dir` (see `lock`). What was said by an earlier training must not
count, and a script may train several times in a row. So a word that falls short of `max_number_of_steps`, or that
stood there from the start, counts only when no other training begins for a while. How a folder is watched, and a
directory in a store, is told in `watching`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moxserve import file
from moxserve.errors import CheckpointError, InterruptedRunError, UsageError
from moxserve.file import atomic_write
from moxserve.file.standins import told_as
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.epochs import samples_in_epoch
from moxserve.tensorflow.executor.located import is_complete
from moxserve.tensorflow.executor.mirror import EVALUATIONS
from moxserve.tensorflow.executor.phases import phases_of
from moxserve.tensorflow.executor.settings import Functions, Settings
from moxserve.tensorflow.executor.signals import SignalGuard
from moxserve.tensorflow.executor.spec import ModeKeys, RunResult
from moxserve.tensorflow.executor.watching import Named, Watched, WatchedFolder, WatchedStore

__all__ = ["Execute", "evaluate_beside"]

Execute = Callable[[Settings, Functions, Topology], RunResult]

_VERSION = 1
# By what checkpoints of a folder are known, and those of a store.
_MARKS = {int: "written_ns", str: "etag"}
_POLL_S = 0.5
# How long an end must be the last word, said while this process watched or before.
_SETTLED_S = 5.0
_STALE_S = 60.0


def evaluate_beside(settings: Settings, functions: Functions, topology: Topology, execute: Execute) -> RunResult:
    """Evaluate the checkpoints of a training until it has ended; any other run is made as a single process makes it.

    Args:
        settings: of the run.
        functions: the user's.
        topology: of this process.
        execute: makes one run.

    Returns:
        The result of the last evaluation; one without metrics where there was no checkpoint.

    Raises:
        UsageError: there is no `log_dir`, or an evaluation would not end.
        InterruptedRunError: a signal came.
    """
    # It belongs to no cluster: its graph is a single process's.
    alone = topology.alone()
    if settings.mode != ModeKeys.TRAIN:
        return execute(settings, functions, alone)
    if settings.log_dir is None:
        raise UsageError(
            "flag --job_name=evaluator: run() has no log_dir, where the training would leave its checkpoints",
            hint="give log_dir to run(), or --log_dir on the command line",
        )
    with contextlib.ExitStack() as stack:
        watched: Watched = WatchedFolder(settings.log_dir)
        if settings.mirror is not None:
            folder = stack.enter_context(file.scratch_directory())
            stack.enter_context(told_as(folder, settings.mirror.url))
            watched = WatchedStore(settings.mirror, folder)
        evaluator = _Evaluator(settings, functions, lambda of, using: execute(of, using, alone), watched)
        evaluator.towers = alone.num_devices
        guard = stack.enter_context(SignalGuard())
        ending = _Ending(watched, settings.max_steps)
        evaluator.tell_waiting()
        while True:
            if watched.look():
                ended = ending.is_sure()  # asked first: the last checkpoint is there by then
                if evaluator.catch_up(lambda: guard.signum != 0) and ended:
                    return evaluator.result()
            if guard.signum:
                raise InterruptedRunError("the evaluator was stopped by a signal", guard.signum)
            time.sleep(_POLL_S)


class _Ending:
    """Whether the training is over."""

    def __init__(self, watched: Watched, goal: int) -> None:
        self._watched, self._goal = watched, goal
        self._began = False
        self._said: int | None = None
        self._since = time.monotonic()
        self._settled_s = _STALE_S

    def is_sure(self) -> bool:
        """Look at what the chief says."""
        said, now = self._watched.ended(), time.monotonic()
        if not self._began:
            self._began, self._said = True, said
        if said != self._said:
            self._said, self._since, self._settled_s = said, now, _SETTLED_S + self._watched.slack_s
        if said is None:
            return False
        return (bool(self._goal) and said >= self._goal) or now - self._since >= self._settled_s


@dataclass(frozen=True)
class _Known:
    """A checkpoint as it was when it was evaluated: its step, and when it was written, or its tag in a store."""

    step: int
    mark: int | str


class _Evaluator:
    """Evaluates what is new.

    Args:
        settings: of the training.
        functions: the user's.
        execute: makes one run of a single process.
        watched: where the training is.

    Attributes:
        towers: how many batches such a run evaluates at a step.
    """

    def __init__(
        self,
        settings: Settings,
        functions: Functions,
        execute: Callable[[Settings, Functions], RunResult],
        watched: Watched,
    ) -> None:
        self._settings, self._functions, self._execute, self._watched = settings, functions, execute, watched
        self.towers = 1
        self._path = os.path.join(str(settings.log_dir), EVALUATIONS)
        self._folder = os.path.dirname(self._path)
        self._metrics: dict[_Known, Mapping[str, float]] = self._load()
        self._last: RunResult | None = None

    def tell_waiting(self) -> None:
        """Say what this process is about to do."""
        done = f" ({len(self._metrics)} checkpoint(s) evaluated before)" if self._metrics else ""
        tf1.logging.info("the evaluator watches %s for checkpoints%s", self._watched.url, done)

    def catch_up(self, stopped: Callable[[], bool]) -> bool:
        """Evaluate the checkpoints that have not been, oldest first.

        Returns:
            Whether that is done; false when it was stopped, or a checkpoint could not be fetched now.
        """
        for named in self._watched.named():
            known = _Known(named.step, named.mark)
            if known in self._metrics:
                continue
            if stopped():
                return False
            with self._watched.here(named) as prefix:
                if prefix is None:
                    return False
                metrics = self._metrics_of(named, prefix)
            if metrics is not None:
                self._metrics[known] = metrics
                self._save()
                self._watched.keep()
        return True

    def _metrics_of(self, named: Named, prefix: str) -> Mapping[str, float] | None:
        """Evaluate a checkpoint; None when it was dropped before."""
        try:
            last = self._evaluate(prefix)
        except CheckpointError as error:
            if is_complete(prefix):
                raise
            tf1.logging.warning("%s was dropped before it could be evaluated: %s", named.path, error.message)
            return None
        self._last = replace(last, checkpoint=named.path)
        return {name: float(value) for name, value in last.metrics.items()}

    def result(self) -> RunResult:
        """What it came to; of an evaluator that was started again, what its predecessor found last."""
        if self._last is not None:
            return replace(self._last, stop_reason="training_ended")
        latest = max(self._metrics, key=lambda known: known.step, default=None)
        step, metrics = (latest.step, self._metrics[latest]) if latest is not None else (0, {})
        return RunResult(
            ModeKeys.EVAL,
            start_step=step,
            global_step=step,
            local_steps=0,
            stop_reason="training_ended",
            checkpoint=next((named.path for named in reversed(self._watched.named())), None),
            metrics=metrics,
        )

    def _evaluate(self, prefix: str) -> RunResult:
        settings = replace(
            self._settings,
            mode=ModeKeys.EVAL,
            inter_mode=None,
            mirror=None,  # what an evaluation leaves is sent when it is noted
            log_dir=self._folder,  # where no checkpoint ever is: the one to evaluate is said
            checkpoint_path=prefix,
            warm_start=None,
            max_steps=self._steps(),
            log_every=None,
            output_every=0,
            export=(),
        )
        functions = replace(self._functions, model_fn=self._model_fn(prefix), output_fn=None, fetch_strategy_fn=None)
        return self._execute(settings, functions)

    def _steps(self) -> int:
        rows = samples_in_epoch(0, training=False)
        return math.ceil(rows / (self._settings.batch_size * self.towers))

    def _model_fn(self, prefix: str) -> Callable[..., Any]:
        """Of a training in phases the one that the checkpoint is of."""
        names = checkpoints.variable_names(prefix)
        for phase in phases_of(self._functions.model_fn):
            if not any(name.startswith(f"{phase.successor}/") for name in names):
                return phase.model_fn
        return self._functions.model_fn

    def _load(self) -> dict[_Known, Mapping[str, float]]:
        try:
            with open(self._path, encoding="utf-8") as f:
                found = json.load(f)
            return {
                _Known(e["step"], e["etag"] if "etag" in e else e["written_ns"]): dict(e["metrics"])
                for e in found["evaluations"]
            }
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            tf1.logging.warning("%s cannot be read (%s): checkpoints are evaluated again", self._path, error)
            return {}

    def _save(self) -> None:
        evaluations = [
            {"step": known.step, _MARKS[type(known.mark)]: known.mark, "metrics": metrics}
            for known, metrics in sorted(self._metrics.items(), key=lambda item: item[0].step)
        ]
        os.makedirs(self._folder, exist_ok=True)
        atomic_write(self._path, json.dumps({"version": _VERSION, "evaluations": evaluations}, indent=2) + "\n")
