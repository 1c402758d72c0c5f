"""The hooks of one run: they become participants of the loop, and are asked together what concerns the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.tensorflow.executor.env import tf1
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
        self._alone = run.workers.topology.num_workers == 1
        self.states = HookStates(folder, hooks)
        self.participants = [_join(hook, run) for hook in hooks]
        for hook in hooks:
            _give_saver(hook, run)

    def tell_ended(self) -> bool:
        """Whether a hook had ended the training before it was resumed; warns then. Several workers find it out at the
        next evaluation, all together.
        """
        return self._alone and self.states.tell_ended()

    @property
    def best(self) -> str | None:
        """The best checkpoint that a hook has kept; None for none."""
        return next((hook.best for hook in self._hooks if isinstance(hook, BestCheckpointHook)), None)

    def exported(self, checkpoint: str | None) -> str | None:
        """Which checkpoint is exported at the end: the one that the run ended with, unless a hook wants its best."""
        wanted = (hook.best for hook in self._hooks if isinstance(hook, BestCheckpointHook) and hook.export_best)
        return next((best for best in wanted if best is not None), checkpoint)


def _join(hook: Any, run: HookRun) -> HookParticipant:
    if not isinstance(hook, AggregativeSessionRunHook):
        return HookParticipant(hook)
    hook.join_run(run)
    together = hook.support_sync_workers()
    # Each worker may evaluate another part of the data: what follows from that, the chief decides.
    heeded = run.decides or not hook.run_inter_mode()
    agree = run.workers.agree if together and heeded else None
    return HookParticipant(hook, agree if heeded else _never, counts_globally=run.shares_decisions and together)


def _never(stop: bool) -> bool:
    return False


def _give_saver(hook: Any, run: HookRun) -> None:
    """Do for hooks of `tf.train` what MonitoredTrainingSession does: finish their Scaffold, or let those that save find
    a Saver in the graph.
    """
    scaffold = getattr(hook, "_scaffold", None)
    if isinstance(scaffold, tf1.train.Scaffold):
        scaffold.finalize()
        tf1.get_default_graph()._unsafe_unfinalize()  # others have not begun yet
    elif isinstance(hook, tf1.train.CheckpointSaverHook) and hook._saver is None:
        savers = tf1.get_collection_ref(tf1.GraphKeys.SAVERS)
        if not savers:
            savers.append(tf1.train.Saver() if run.checkpointer is None else run.checkpointer.saver)
