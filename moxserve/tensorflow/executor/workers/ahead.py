"""Batches that are taken before their step: whoever finds none says so before the others wait for it in a collective.

A step whose input ends in the middle of it would break off the collective that the others are in already, and with it
their steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.participants import NEVER, Clock, InputEnded, Participant, is_end_of_input
from moxserve.tensorflow.executor.rounds import TowerInputs
from moxserve.tensorflow.executor.stepper import Fetcher

__all__ = ["TakenAhead"]


class TakenAhead(Participant):
    """Takes the batches of a step before it. Made while the graph is open.

    Args:
        rounds: the tensors of each tower.

    Attributes:
        towers: the same tensors, as they were taken.
    """

    def __init__(self, rounds: Sequence[TowerInputs]) -> None:
        from tensorflow.python.ops.data_flow_ops import StagingArea

        given = [[*tensors, *([] if tensors.present is None else [tensors.present])] for tensors in rounds]
        flat = [tensor for group in given for tensor in group]
        with tf.device("/cpu:0"):
            area = StagingArea([tensor.dtype for tensor in flat], [tensor.shape for tensor in flat])
            self._put: str = area.put(flat).name
            got = area.get()
        taken = iter(got if isinstance(got, (list, tuple)) else [got])
        self.towers = [
            TowerInputs(
                [next(taken) for _ in tensors], None if tensors.present is None else next(taken), tensors.groups
            )
            for tensors in rounds
        ]
        self._take: Any = None

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Remember how to take."""
        self._take = Fetcher(session).callable((), (), (self._put,))

    def next_step(self, clock: Clock) -> int:
        """Never: `ready` is called before each step anyway."""
        return NEVER

    def ready(self, clock: Clock) -> None:
        """Take the batches of the next step.

        Raises:
            InputEnded: there are none.
        """
        try:
            self._take()
        except tf.errors.OutOfRangeError as error:
            if is_end_of_input(error):
                raise InputEnded from None
            raise
