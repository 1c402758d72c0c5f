"""Step timelines: a whole trace of single steps, as a file that chrome://tracing and Perfetto show, and the dearest
operations on the console.

A traced step runs through `Session.run` with `RunOptions(trace_level=FULL_TRACE)`; every other step knows nothing of
it. What is in the file is told in `moxserve.inspect.timeline`, which also reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from moxserve import file
from moxserve.inspect.timeline import Cost, costs, events_of, wall_ms
from moxserve.talk import Event
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks import AggregativeSessionRunHook
from moxserve.tensorflow.executor.observe.steps import StepSet, shown_step
from moxserve.tensorflow.executor.workers import current_workers

__all__ = ["TimelineHook"]

_ROWS = 10
_FOLDER = "timeline"


class TimelineHook(AggregativeSessionRunHook):
    """Traces chosen steps: one file `LOG_DIR/timeline/timeline-<step>.json` each, and a table on the console.

    Steps have the numbers that the console lines show: in TRAIN those of the global step, in EVAL and PREDICT those of
    the run. In a job of several workers only the chief traces, unless `all_workers`; the files of the others are
    `timeline-worker<index>-<step>.json`.

    Args:
        steps: numbers of the steps to trace; or text such as `100,200,300-305`.
        log_dir: base folder; None writes no file, and only prints the table.
        memory: also trace how much memory the allocators hold.
        all_workers: every worker traces, not only the chief.
        label: put into the file's name before the step.

    Attributes:
        paths: the files that were written.
        shown: how a path is told, where `log_dir` stands for another place.

    Raises:
        UsageError: `steps` are no steps.
    """

    counts_global_steps = True

    def __init__(
        self,
        steps: str | Iterable[int] = (),
        log_dir: str | os.PathLike[str] | None = None,
        *,
        memory: bool = False,
        all_workers: bool = False,
        label: str = "",
    ) -> None:
        super().__init__()
        what = "TimelineHook(steps)"
        self.steps = StepSet.parse(steps, what) if isinstance(steps, str) else StepSet.of(steps, what)
        self.paths: list[str] = []
        self.shown: Callable[[str], str | None] = lambda path: path
        self._folder = None if log_dir is None else os.path.join(os.fspath(log_dir), _FOLDER)
        self._memory = memory
        self._all_workers = all_workers
        self._label = label
        self._asked = False
        # How much larger the console's number of a step is than its index in the run; known at the first step.
        self._offset: int | None = None
        self._step: int | None = None

    def request(self) -> None:
        """Trace the next step that the run looks at, whatever `steps` says; may be called from a signal handler."""
        self._asked = True

    def begin(self) -> None:
        """See which process this is; runs when the graph is open."""
        workers = current_workers()
        if workers is None:
            return
        topology = workers.topology
        if not topology.is_chief and not self._all_workers:
            self.steps = StepSet()
        if topology.num_workers > 1:
            self._label = "-".join(filter(None, (self._label, f"worker{topology.index}")))

    def next_active_step(self, step: int) -> int:
        """The next step to trace."""
        return step if self._asked else self.steps.next_from(step)

    def before_run(self, run_context: Any) -> Any:
        """Ask for the trace of a step that is to be traced."""
        step = shown_step(run_context.clock)
        if not self._asked and self.steps.next_from(step) != step:
            return None
        self._asked, self._step = False, step
        return tf1.train.SessionRunArgs(fetches=None, options=tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE))

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Write the trace, and print what costs most."""
        if self._step is None:
            return
        step, self._step = self._step, None
        with run_context.clock.aside():  # what writing takes is no time of the steps
            self._write(step, run_values.run_metadata.step_stats)

    def _write(self, step: int, step_stats: Any) -> None:
        from tensorflow.python.client import timeline

        text = timeline.Timeline(step_stats).generate_chrome_trace_format(show_memory=self._memory)
        path = None
        if self._folder is not None:
            file.make_dirs(self._folder)
            path = os.path.join(self._folder, "-".join(filter(None, ("timeline", self._label, f"{step}.json"))))
            file.write(path, text)
            path = self.shown(path) or path
            self.paths.append(path)
        events = events_of(json.loads(text))
        tf1.logging.info("%s", _told(step, path, wall_ms(events), costs(events)))

    def support_aggregation(self) -> bool:
        """True: the trace of a step has all devices in it, so one hook is enough."""
        return True

    def support_sync_workers(self) -> bool:
        """False: a trace is the business of one process."""
        return False

    def run_inter_mode(self) -> bool:
        """False: steps of training are traced."""
        return False


def _told(step: int, path: str | None, wall: float, found: list[Cost]) -> Event:
    """Write the table of the dearest types of operations."""
    calls = sum(cost.calls for cost in found)
    head = f"timeline of step {step}: {calls} operations in {wall:.3f} ms"
    rows = [("TIME MS", "SHARE", "CALLS", "DEVICE", "OPERATION")]
    rows += [(f"{c.time_ms:.3f}", f"{100 * c.share:.1f} %", str(c.calls), c.device, c.name) for c in found[:_ROWS]]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join((*(cell.rjust(w) for cell, w in zip(row[:3], widths, strict=False)), row[3].ljust(widths[3]), row[4]))
        for row in rows
    ]
    more = f"\n  ... and {len(found) - _ROWS} more" if len(found) > _ROWS else ""
    where = "" if path is None else f"; {path}"
    facts = {
        "event": "timeline",
        "step": step,
        "path": path,
        "wall_ms": wall,
        "costs": [
            {"type": c.name, "device": c.device, "calls": c.calls, "time_ms": c.time_ms, "share": c.share}
            for c in found[:_ROWS]
        ],
    }
    return Event("\n  ".join((head + where, *lines)) + more, facts)
