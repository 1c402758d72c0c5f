"""Hooks become participants of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.tensorflow.executor.hooks.base import AggregativeSessionRunHook, HookRun
from moxserve.tensorflow.executor.participants import HookParticipant

__all__ = ["join_hooks"]


def join_hooks(hooks: Sequence[Any], run: HookRun) -> list[HookParticipant]:
    """Tell hooks about the run, and make them take part in it.

    Args:
        hooks: checked, in order.
        run: what they may know.
    """
    joined = []
    for hook in hooks:
        together = False
        if isinstance(hook, AggregativeSessionRunHook):
            hook.join_run(run)
            together = run.shares_decisions and hook.support_sync_workers()
        joined.append(HookParticipant(hook, run.workers.agree if together else None))
    return joined
