"""Profiles of ranges of steps for TensorBoard, by TensorFlow's own profiler: host threads, operations, GPU kernels.

TensorFlow documents it for eager programs; it records what sessions run as well. The files are
`LOG_DIR/plugins/profile/steps-<first>-<last>/<host>.xplane.pb`, where TensorBoard's profile plugin looks for them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from moxserve import file
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
        label: put before the steps in the name of the folder.

    Attributes:
        paths: the files that were written.
        shown: how a path is told, where `log_dir` stands for another place.
    """

    def __init__(self, steps: StepSet, log_dir: str | None, worker: str = "", label: str = "") -> None:
        self._steps = steps
        self._log_dir = log_dir
        self._worker = worker
        self._label = label
        self._asked = False
        self._first = self._last = NEVER
        self._recording: AbstractContextManager[Any] | None = None
        self._folder = ""
        self.paths: list[str] = []
        self.shown: Callable[[str], str | None] = lambda path: path

    def request(self) -> None:
        """Profile the next steps, whatever `steps` says; may be called from a signal handler."""
        self._asked = True

    def next_step(self, clock: Clock) -> int:
        """The last step of the range that is being recorded, else the first of the next one."""
        if self._recording is not None:
            return run_step_of(self._last, clock)
        if self._asked:
            return clock.run_step
        first = self._steps.next_from(shown_step(clock))
        return NEVER if first == NEVER else run_step_of(first, clock)

    def step_args(self, context: StepContext) -> Any:
        """Start, where this is the first step; the step itself runs as ever."""
        if self._recording is None:
            self._begin(context.clock)

    def step_values(self, context: StepContext, values: Any) -> None:
        """Stop, where this was the last step; the clock has counted it."""
        if self._recording is not None and shown_step(context.clock) > self._last:
            self._end(self._last, context.clock)

    def finish(self, ok: bool) -> None:
        """Stop, where the run ends within a range."""
        if self._recording is not None:
            self._end(None, None)

    def _begin(self, clock: Clock) -> None:
        step, asked, self._asked = shown_step(clock), self._asked, False
        last = step + _ON_DEMAND_STEPS - 1 if asked else self._steps.last_of(step)
        if self._log_dir is None:
            tf1.logging.warning("no profile from step %d on: the run has no log_dir to write it to", step)
            return
        with ExitStack() as stack:
            # Not into log_dir at once: the profiler names folders by the second, and what a second run of it writes in
            # the same one takes the place of the first.
            folder = stack.enter_context(file.scratch_directory())
            try:
                tf.profiler.experimental.start(folder)
            except tf.errors.AlreadyExistsError:
                tf1.logging.warning("no profile of steps %d to %d: the profiler of this process is in use", step, last)
                self._steps = self._steps.after(last)
                return
            self._recording, self._folder = stack.pop_all(), folder
        self._first, self._last = step, last

    def _end(self, last: int | None, clock: Clock | None) -> None:
        """Stop, and write what was recorded.

        Args:
            last: number of the last step; None where the run ended before.
            clock: the time of writing is none of the steps'; None where these are over.
        """
        recording, self._recording = self._recording, None
        with recording or nullcontext(), clock.aside() if clock is not None else nullcontext():
            tf.profiler.experimental.stop()
            paths = [self._kept(path, last) for path in self._written()]
        self.paths += paths
        until = "the end" if last is None else f"step {last}"
        facts = {"event": "profile", "first_step": self._first, "last_step": last, "paths": paths}
        where = ", ".join(paths)
        text = (
            f"profile of step {self._first} to {until}: {where}; tensorboard --logdir {self.shown(str(self._log_dir))}"
        )
        tf1.logging.info("%s", Event(text, facts))

    def _written(self) -> list[str]:
        pattern = os.path.join(glob.escape(self._folder), "plugins", "profile", "*", f"*{_SUFFIX}")
        return sorted(glob.glob(pattern))

    def _kept(self, path: str, last: int | None) -> str:
        """Put a file where TensorBoard looks for it."""
        steps = "-".join(filter(None, (self._label, "steps", str(self._first), "end" if last is None else str(last))))
        folder = os.path.join(str(self._log_dir), "plugins", "profile", steps)
        host = os.path.basename(path).removesuffix(_SUFFIX)
        kept = os.path.join(folder, "-".join(filter(None, (host, self._worker))) + _SUFFIX)
        file.make_dirs(folder)
        file.copy(path, kept)
        return self.shown(kept) or kept
