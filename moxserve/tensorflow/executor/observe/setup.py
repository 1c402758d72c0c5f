"""What a run is observed with: read from the flags, and put among its participants."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from moxserve import talk
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import FlagStore
from moxserve.tensorflow.executor.loop import LoopTiming
from moxserve.tensorflow.executor.observe.demand import Demand
from moxserve.tensorflow.executor.observe.gpus import GpuMeter
from moxserve.tensorflow.executor.observe.live import LiveLine
from moxserve.tensorflow.executor.observe.profile import StepProfiler
from moxserve.tensorflow.executor.observe.progress import Progress
from moxserve.tensorflow.executor.observe.steps import StepSet
from moxserve.tensorflow.executor.observe.timeline import TimelineHook
from moxserve.tensorflow.executor.observe.utilisation import UtilisationMeter
from moxserve.tensorflow.executor.participants import Clock, HookParticipant, Participant
from moxserve.tensorflow.executor.reporters import SummaryWriter
from moxserve.tensorflow.executor.settings import Settings
from moxserve.tensorflow.executor.spec import ModeKeys

__all__ = ["Observers"]


class Observers:
    """Those who look on.

    Args:
        settings: of the run.
        store: the flags.
        topology: of the job.

    Raises:
        UsageError: a flag is wrong, or needs log_dir.
    """

    def __init__(self, settings: Settings, store: FlagStore, topology: Topology) -> None:
        self._settings = settings
        self._topology = topology
        chosen = topology.is_chief or store.get("trace_all_workers")
        self._timeline = TimelineHook(log_dir=settings.log_dir, label=_label(settings.mode), all_workers=True)
        self._timeline.shown = settings.shown
        self._timeline.steps = self._steps(store, "timeline_steps") if chosen else StepSet()
        worker = f"worker{topology.index}" if topology.num_workers > 1 else ""
        profiled = self._steps(store, "profile_steps") if chosen else StepSet()
        self._profiler = StepProfiler(profiled, settings.log_dir, worker, _label(settings.mode))
        self._profiler.shown = settings.shown
        unheard = store.get("log_first_worker") and not topology.is_chief
        self._talks = settings.log_every is not None and not unheard
        self._progress_s = float(store.get("progress_secs")) if self._talks and talk.form() != "quiet" else 0.0
        self._meter: UtilisationMeter | None = None

    def _steps(self, store: FlagStore, flag: str) -> StepSet:
        steps = StepSet.parse(store.get(flag), f"flag --{flag}")
        if steps.ranges and self._settings.log_dir is None:
            raise UsageError(
                f"flag --{flag} needs log_dir, where what is seen is written", hint="give log_dir to run()"
            )
        return steps

    def participants(self, others: Sequence[Participant], inputs: Sequence[Any], step_rows: int) -> list[Participant]:
        """Who takes part in the loop; made while the graph is open.

        Args:
            others: who takes part so far.
            inputs: input tensors of the first tower.
            step_rows: rows that a step counts for in throughputs.
        """
        summaries = next((p for p in others if isinstance(p, SummaryWriter)), None)
        # Samples are taken at steps that fetch something anyway: a step with fetches of its own costs a little.
        every = self._settings.summary_every if summaries is not None else self._settings.log_every
        write = summaries.scalars if summaries is not None else None
        self._meter = UtilisationMeter(inputs, every, step_rows, write, self._gpus())
        found: list[Participant] = [HookParticipant(self._timeline), self._profiler, self._meter]
        if self._progress_s > 0:
            live = LiveLine.on_terminal() if talk.form() == "text" else None
            found.append(Progress(self._progress_s, live))
        return found

    def _gpus(self) -> GpuMeter | None:
        """The GPUs of this process, where there are any and they can be read."""
        if self._topology.on_cpu or not tf.config.list_physical_devices("GPU"):
            return None
        return GpuMeter.open(self._topology.num_devices)

    def on_demand(self, clock: Clock) -> AbstractContextManager[None]:
        """Context in which signals ask for a look at the next steps."""
        return Demand(clock, {"SIGUSR1": self._timeline.request, "SIGUSR2": self._profiler.request})

    def result(self, clock: Clock, timing: LoopTiming | None) -> dict[str, Any]:
        """Sum up, and print what was used; fields of the RunResult.

        Args:
            clock: of the run.
            timing: of its steps; None where it made none.
        """
        used = None
        if timing is not None and self._meter is not None:
            used = self._meter.result(timing.steps, timing.wall_s, timing.cpu_s, clock.waited_s)
        if used is not None and self._talks:
            tf1.logging.info("%s", used.event())
        return {"traces": (*self._timeline.paths, *self._profiler.paths), "utilisation": used}


def _label(mode: str) -> str:
    return "" if mode == ModeKeys.TRAIN else mode.lower()
