"""What a run is observed with: read from the flags, and put among its participants."""

from __future__ import annotations

from contextlib import AbstractContextManager

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.flags import FlagStore
from moxserve.tensorflow.executor.observe.demand import Demand
from moxserve.tensorflow.executor.observe.steps import StepSet
from moxserve.tensorflow.executor.observe.timeline import TimelineHook
from moxserve.tensorflow.executor.participants import Clock, HookParticipant, Participant
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
        self._timeline = TimelineHook(log_dir=settings.log_dir, label=_label(settings.mode), all_workers=True)
        if topology.is_chief or store.get("trace_all_workers"):
            self._timeline.steps = self._steps(store, "timeline_steps")

    def _steps(self, store: FlagStore, flag: str) -> StepSet:
        steps = StepSet.parse(store.get(flag), f"flag --{flag}")
        if steps.ranges and self._settings.log_dir is None:
            raise UsageError(
                f"flag --{flag} needs log_dir, where what is seen is written", hint="give log_dir to run()"
            )
        return steps

    @property
    def participants(self) -> list[Participant]:
        """Who takes part in the loop; no hook of the user's comes after them."""
        return [HookParticipant(self._timeline)]

    def on_demand(self, clock: Clock) -> AbstractContextManager[None]:
        """Context in which signals ask for a look at the next steps."""
        return Demand(clock, {"SIGUSR1": self._timeline.request})

    @property
    def traces(self) -> tuple[str, ...]:
        """Files that were written."""
        return tuple(self._timeline.paths)


def _label(mode: str) -> str:
    return "" if mode == ModeKeys.TRAIN else mode.lower()
