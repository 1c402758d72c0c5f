"""Profiles of ranges of steps for TensorBoard, by TensorFlow's own profiler: host threads, operations, GPU kernels.

TensorFlow documents it for eager programs; it records what sessions run as well. The files are
`LOG_DIR/plugins/profile/<time>/<host>.xplane.pb`, where TensorBoard's profile plugin looks for them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moxserve.talk import Event
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.observe.steps import StepSet, run_step_of, shown_step
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant, StepContext

__all__ = ["StepProfiler"]

_ON_DEMAND_STEPS = 10
_SUFFIX = ".xplane.pb"


class StepProfiler(Participant):
    """Starts the profiler before the first step of a range and stops it after the last.

    A process has one profiler: where somebody else uses it, a range is left out, with a warning.

    Args:
        steps: ranges of steps.
        log_dir: where `plugins/profile` is; None profiles nothing.
        worker: put into the names of the files, so that workers on one host do not write the same; empty in a job of
            one process.

    Attributes:
        paths: the files that were written.
    """

    def __init__(self, steps: StepSet, log_dir: str | None, worker: str = "") -> None:
        self._steps = steps
        self._log_dir = log_dir
        self._worker = worker
        self._asked = False
        self._first = self._last = NEVER
        self._running = False
        self.paths: list[str] = []

    def request(self) -> None:
        """Profile the next steps, whatever `steps` says; may be called from a signal handler."""
        self._asked = True

    def next_step(self, clock: Clock) -> int:
        """The last step of the range that is being recorded, else the first of the next one."""
        if self._running:
            return run_step_of(self._last, clock)
        if self._asked:
            return clock.run_step
        first = self._steps.next_from(shown_step(clock))
        return NEVER if first == NEVER else run_step_of(first, clock)

    def step_args(self, context: StepContext) -> Any:
        """Start, where this is the first step; the step itself runs as ever."""
        if not self._running:
            self._begin(context.clock)

    def step_values(self, context: StepContext, values: Any) -> None:
        """Stop, where this was the last step; the clock has counted it."""
        if self._running and shown_step(context.clock) > self._last:
            with context.clock.aside():
                self._end(self._last)

    def finish(self, ok: bool) -> None:
        """Stop, where the run ends within a range."""
        if self._running:
            self._end(None)

    def _begin(self, clock: Clock) -> None:
        step, asked, self._asked = shown_step(clock), self._asked, False
        last = step + _ON_DEMAND_STEPS - 1 if asked else self._steps.last_of(step)
        if self._log_dir is None:
            tf1.logging.warning("no profile from step %d on: the run has no log_dir to write it to", step)
            return
        try:
            tf.profiler.experimental.start(self._log_dir)
        except tf.errors.AlreadyExistsError:
            tf1.logging.warning("no profile of steps %d to %d: the profiler of this process is in use", step, last)
            self._steps = self._steps.after(last)
            return
        self._running, self._first, self._last = True, step, last

    def _end(self, last: int | None) -> None:
        """Stop, and write what was recorded; `last` is None where the run ended first."""
        self._running = False
        with self._new_files() as found:
            tf.profiler.experimental.stop()
        paths = [self._named(path) for path in found]
        self.paths += paths
        until = "the end" if last is None else f"step {last}"
        facts = {"event": "profile", "first_step": self._first, "last_step": last, "paths": paths}
        where = ", ".join(paths)
        text = f"profile of step {self._first} to {until}: {where}; tensorboard --logdir {self._log_dir}"
        tf1.logging.info("%s", Event(text, facts))

    @contextmanager
    def _new_files(self) -> Iterator[list[str]]:
        """Find out what files the profiler writes: it does not tell."""
        pattern = os.path.join(glob.escape(str(self._log_dir)), "plugins", "profile", "*", f"*{_SUFFIX}")
        before = set(glob.glob(pattern))
        found: list[str] = []
        yield found
        found += sorted(set(glob.glob(pattern)) - before)

    def _named(self, path: str) -> str:
        """Put the worker into a file's name."""
        if not self._worker:
            return path
        named = f"{path.removesuffix(_SUFFIX)}-{self._worker}{_SUFFIX}"
        os.replace(path, named)
        return named
