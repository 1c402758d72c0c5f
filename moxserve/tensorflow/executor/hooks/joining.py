"""The hooks of one run: they become participants of the loop, and are asked together what concerns the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.tensorflow.executor.hooks.base import AggregativeSessionRunHook, HookRun
from moxserve.tensorflow.executor.hooks.best import BestCheckpointHook
from moxserve.tensorflow.executor.hooks.states import HookStates
from moxserve.tensorflow.executor.participants import HookParticipant

__all__ = ["RunHooks"]


class RunHooks:
    """The hooks of a run.

    Args:
        hooks: checked, in order.
        run: what they may know.
        folder: the `log_dir` of a training, where their states are kept; None for none.

    Attributes:
        states: what they know, for a run that goes on.
        participants: one a hook.
    """

    def __init__(self, hooks: Sequence[Any], run: HookRun, folder: str | None) -> None:
        self._hooks = list(hooks)
        self.states = HookStates(folder, hooks)
        self.participants = [_join(hook, run) for hook in hooks]

    @property
    def best(self) -> str | None:
        """The best checkpoint that a hook has kept; None for none."""
        return next((hook.best for hook in self._hooks if isinstance(hook, BestCheckpointHook)), None)

    def exported(self, checkpoint: str | None) -> str | None:
        """Which checkpoint is exported at the end: the one that the run ended with, unless a hook wants its best."""
        wanted = (hook.best for hook in self._hooks if isinstance(hook, BestCheckpointHook) and hook.export_best)
        return next((best for best in wanted if best is not None), checkpoint)


def _join(hook: Any, run: HookRun) -> HookParticipant:
    together = False
    if isinstance(hook, AggregativeSessionRunHook):
        hook.join_run(run)
        together = run.shares_decisions and hook.support_sync_workers()
    return HookParticipant(hook, run.workers.agree if together else None)
