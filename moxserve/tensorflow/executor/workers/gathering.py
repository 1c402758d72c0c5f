"""Workers that step apart, and meet now and then: `Workers.apply_together` of an asynchronous job.

They meet in rounds, as synchronous workers do at each step (see `synchronous`), but inside of a branch of a condition,
which each worker takes when its own optimizer wrapper says so. Who has made all its steps does not let the others wait:

    a worker   answers each further round without gradients, while it waits for the others to end
    the chief  says that it is gone; from then on each of the others applies its own gradients
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers.bundles import silence, split
from moxserve.tensorflow.executor.workers.placement import SHARED_VARIABLES, Placement
from moxserve.tensorflow.executor.workers.rounds import Meeting, Rounds, new_number

__all__ = ["Gathering"]

_NEVER_STALE = 1 << 62  # each take makes an accumulator refuse what has a smaller step than the number of takes


class Gathering:
    """The meetings of one call of `apply_together`.

    Args:
        name: the same in all workers, and no other's.
        placement: where things are.
        topology: of the job.
    """

    def __init__(self, name: str, placement: Placement, topology: Topology) -> None:
        self._name, self._placement, self._topology = name, placement, topology
        with tf.init_scope():
            self._rounds = Rounds(placement, topology, name)
            with placement.shared():
                self._alone = tf1.get_variable(
                    f"moxserve/{name}/alone", [], tf.bool, tf1.zeros_initializer(), trainable=False, use_resource=True,
                    collections=[SHARED_VARIABLES],
                )  # fmt: skip
            self._set_alone = [self._alone.assign(value, read_value=False) for value in (False, True)]
            self._local_read = self._rounds.local.read_value()
        self._answered = False

    @property
    def variables(self) -> list[Any]:
        """What the chief initialises."""
        return [self._rounds.number, self._alone]

    def apply(self, optimizer: Any, gradients: GradsAndVars) -> Any:
        """Build the update: with the mean of all workers, as soon as all are there."""
        places = len(self._placement.servers)
        bundles, _ = split(gradients, self._placement.server_of, places, keep_sparse=False)
        with tf.init_scope():
            self._meeting = Meeting(self._name, bundles, [], self._placement, self._topology)
            self._build_answer()
        if self._topology.is_chief:
            return self._lead(optimizer)
        ready = [bundle.vector for bundle in self._meeting.bundles]

        def together() -> Any:
            pushed = self._meeting.push(self._rounds.local.read_value())
            followed, _ = self._rounds.follow()
            with tf1.control_dependencies([*pushed, followed]):
                return tf.constant(True)

        def alone() -> Any:
            with tf1.control_dependencies([optimizer.apply_gradients(gradients)]):
                return tf.constant(False)

        with tf1.control_dependencies(ready):
            gone = self._alone.read_value()
        return tf1.cond(gone, alone, together).op

    def _lead(self, optimizer: Any) -> Any:
        pushed = self._meeting.push(self._rounds.local.read_value())
        with tf1.device(self._placement.servers[0]):
            applied = optimizer.apply_gradients(self._meeting.means())
            with tf1.control_dependencies([applied]):
                ended, _ = self._rounds.close(tf.constant(0, tf.int64), tf.constant(0, tf.int64))
        return tf.group(*pushed, ended)

    def _build_answer(self) -> None:
        """Make the operations of a worker that has made all its steps."""
        meeting = self._meeting
        self._vectors = [tf1.placeholder(bundle.dtype, [bundle.size]) for bundle in meeting.bundles]
        self._nothing = [silence(bundle, 0) for bundle in meeting.bundles]
        self._push_nothing = meeting.push_vectors(self._vectors, self._local_read)
        self._tokens, (self._next, *_) = self._rounds.waiting()
        self._take_next = self._rounds.local.assign(self._next, read_value=False)

    # -- while the session is open

    def led(self, session: Any) -> None:
        """The chief begins."""
        session.run(self._set_alone[0])
        number = new_number()
        self._meeting.drain(session, number)
        self._rounds.restart(session, number, 0)

    def followed(self, session: Any) -> None:
        """Another worker begins."""
        self._rounds.join(session)

    def idle(self, session: Any) -> None:
        """This worker has made all its steps, and others have not: do what keeps them from waiting."""
        if self._topology.is_chief:
            session.run(self._set_alone[1])
            waiting = self._meeting.pushed_by(session)
            if waiting.any():
                number = int(session.run(self._rounds.number)) + 1
                self._meeting.drain(session, number)
                self._rounds.hand(session, np.flatnonzero(waiting), number)
            return
        if not self._answered:
            session.run(self._push_nothing, dict(zip(self._vectors, self._nothing, strict=True)))
            self._answered = True
        elif int(session.run(self._tokens)):
            session.run(self._take_next)
            self._answered = False
