"""The protocol of synchronous workers on parameter servers: see `synchronous`.

Meeting   the gradients of one loss: an accumulator per worker and bundle, and the mean of what is in them
Rounds    counts the rounds, and hands out tokens
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers.bundles import Bundle, Sparse, contributors_of
from moxserve.tensorflow.executor.workers.placement import SHARED_VARIABLES, Placement

__all__ = ["Meeting", "Rounds", "new_number"]

_EMPTY_MS = 5000


class Meeting:
    """The gradients of one loss, of all workers.

    Args:
        name: the same in all workers, and no other's.
        bundles: this worker's dense gradients, by parameter server.
        sparse: this worker's sparse gradients.
        placement: where things are.
        topology: of the job.

    Attributes:
        pushed: operations that give this worker's gradients.
        totals: the chief's: tensors that hold the sums, which may be fed; the header first.
    """

    def __init__(
        self, name: str, bundles: list[list[Bundle]], sparse: list[Sparse], placement: Placement, topology: Topology
    ) -> None:
        self.bundles = [bundle for group in bundles for bundle in group]
        self.sparse = sparse
        self.totals: list[Any] = []
        self.pushed: list[Any] = []
        self._placement = placement
        self._own, self._workers = topology.index, topology.num_workers
        self._servers = [server for server, group in enumerate(bundles) for _ in group]
        self._sparse_servers = [placement.server_of(item.variable) for item in sparse]
        self._dense = [self._accumulators(f"{name}/{i}", i) for i in range(len(self.bundles))]
        self._slices = [self._sparse_accumulators(f"{name}/sparse{i}", i) for i in range(len(sparse))]
        self._step = tf1.placeholder(tf.int64, [])
        self._build_control()

    def _accumulators(self, name: str, index: int) -> list[Any]:
        bundle = self.bundles[index]
        with self._placement.shared(self._servers[index]):
            return [
                tf.raw_ops.ResourceConditionalAccumulator(
                    dtype=bundle.dtype, shape=[bundle.size], shared_name=f"moxserve/{name}/{worker}"
                )
                for worker in range(self._workers)
            ]

    def _sparse_accumulators(self, name: str, index: int) -> list[Any]:
        item = self.sparse[index]
        with self._placement.shared(self._sparse_servers[index]):
            return [
                tf1.SparseConditionalAccumulator(
                    item.values.dtype, item.variable.shape, shared_name=f"moxserve/{name}/{worker}"
                )
                for worker in range(self._workers)
            ]

    def push(self, step: Any) -> list[Any]:
        """Give this worker's gradients, for the round `step`."""
        self.pushed += self.push_vectors([bundle.vector for bundle in self.bundles], step)
        for item, server, slices in zip(self.sparse, self._sparse_servers, self._slices, strict=True):
            with tf1.device(self._placement.servers[server]):
                shape = item.variable.shape.as_list()
                self.pushed.append(slices[self._own].apply_grad(item.indices, item.values, shape, local_step=step))
        return self.pushed

    def push_vectors(self, vectors: Sequence[Any], step: Any) -> list[Any]:
        """Give vectors, one a bundle, for the round `step`."""
        pushed = []
        for vector, server, accumulators in zip(vectors, self._servers, self._dense, strict=True):
            with tf1.device(self._placement.servers[server]):
                pushed.append(
                    tf.raw_ops.ResourceAccumulatorApplyGradient(
                        handle=accumulators[self._own], local_step=step, gradient=vector
                    )
                )
        return pushed

    def means(self) -> GradsAndVars:
        """Take one contribution of every worker, as soon as it is there, and average them."""
        means: GradsAndVars = []
        for bundle, server, accumulators in zip(self.bundles, self._servers, self._dense, strict=True):
            with tf1.device(self._placement.servers[server]):
                total = tf1.placeholder_with_default(
                    tf.add_n([_take(a, bundle.dtype) for a in accumulators]), [bundle.size]
                )
                self.totals.append(total)
                means += zip(bundle.means(total), bundle.variables, strict=True)
        contributors = contributors_of(self.header)
        for item, server, slices in zip(self.sparse, self._sparse_servers, self._slices, strict=True):
            with tf1.device(self._placement.servers[server]):
                taken = [accumulator.take_indexed_slices_grad(1) for accumulator in slices]
                values = tf.concat([part.values for part in taken], axis=0)
                values = tf1.placeholder_with_default(values, item.values.shape)
                indices = tf1.placeholder_with_default(tf.concat([part.indices for part in taken], axis=0), [None])
                self.totals += [values, indices]
                scaled = values / tf.cast(contributors, values.dtype)
                means.append((tf.IndexedSlices(scaled, indices, item.variable.shape.as_list()), item.variable))
        return means

    @property
    def header(self) -> Any:
        """The chief's: the first sum, which tells who has contributed and who leaves."""
        return self.totals[0]

    def _build_control(self) -> None:
        """Make the operations of a chief that starts."""
        self._set: list[Any] = []
        self._filled: list[Any] = []
        self._emptied: list[Any] = []
        for bundle, server, accumulators in zip(self.bundles, self._servers, self._dense, strict=True):
            with tf1.device(self._placement.servers[server]):
                for handle in accumulators:
                    self._set.append(
                        tf.raw_ops.ResourceAccumulatorSetGlobalStep(handle=handle, new_global_step=self._step)
                    )
                    self._filled.append(tf.raw_ops.ResourceAccumulatorNumAccumulated(handle=handle))
                    self._emptied.append(_take(handle, bundle.dtype).op)
        for slices in self._slices:
            for accumulator in slices:
                with tf1.device(accumulator.accumulator_ref.device):
                    self._set.append(accumulator.set_global_step(self._step))
                    self._filled.append(accumulator.num_accumulated())
                    self._emptied.append(accumulator.take_indexed_slices_grad(1).values.op)

    def pushed_by(self, session: Any) -> np.ndarray:
        """Which workers have given dense gradients that nobody has taken: `[workers] bool`."""
        filled = np.reshape(session.run(self._filled[: len(self.bundles) * self._workers]), [-1, self._workers])
        return np.asarray(filled.all(axis=0))

    def drain(self, session: Any, step: int) -> None:
        """Drop what the accumulators hold, and let them take nothing that is pushed for a round before `step`."""
        session.run(self._set, {self._step: step - 1})
        filled = session.run(self._filled)
        session.run([op for op, count in zip(self._emptied, filled, strict=True) if count])
        session.run(self._set, {self._step: step})


def _take(accumulator: Any, dtype: Any) -> Any:
    return tf.raw_ops.ResourceAccumulatorTakeGradient(handle=accumulator, num_required=1, dtype=dtype)


class Rounds:
    """Counts the rounds, and hands each worker a token at the end of one.

    Args:
        placement: where things are.
        topology: of the job.
        name: the same in all workers, and no other's.

    Attributes:
        number: of the current round, a variable on the first parameter server.
        local: of the round that this worker pushes for, a variable of its own.
        news: `[2] int64`: global step after the step, and reasons to leave.
    """

    def __init__(self, placement: Placement, topology: Topology, name: str) -> None:
        self._own, self._placement = topology.index, placement
        with placement.shared():
            self.number = tf1.get_variable(
                f"moxserve/{name}/round", [], tf.int64, tf1.zeros_initializer(), trainable=False, use_resource=True,
                collections=[SHARED_VARIABLES],
            )  # fmt: skip
            self._queues = [
                tf1.FIFOQueue(1024, [tf.int64] * 3, [()] * 3, shared_name=f"moxserve/{name}/tokens/{worker}")
                for worker in range(topology.num_workers)
            ]
        with placement.own():
            self.local = tf1.get_variable(
                f"moxserve/{name}/local", [], tf.int64, tf1.zeros_initializer(), trainable=False, use_resource=True,
                collections=[tf1.GraphKeys.LOCAL_VARIABLES],
            )  # fmt: skip
        self.news: Any = None
        self._token = [tf1.placeholder(tf.int64, []) for _ in range(3)]
        with placement.shared():
            self._emptied = [queue.dequeue_many(queue.size()) for queue in self._queues]
            self._handed = [queue.enqueue(self._token) for queue in self._queues[1:]]
            self._numbered = self.number.assign(self._token[0], read_value=False)
        self._local_set = self.local.assign(self._token[0], read_value=False)
        self._number_read = self.number.read_value()

    def close(self, global_step: Any, left: Any) -> tuple[Any, Any]:
        """The chief's end of a round: count it, and hand out the tokens.

        Returns:
            The operation, and the news.
        """
        with tf1.device(self._placement.servers[0]):
            number = self.number.assign_add(1)
            tokens = [queue.enqueue([number, global_step, left]) for queue in self._queues[1:]]
            news = tf.stack([global_step, left])
        return tf.group(self.local.assign(number, read_value=False), *tokens), news

    def follow(self) -> tuple[Any, Any]:
        """The end of a round for everybody else: wait for the token.

        Returns:
            The operation, and the news.
        """
        with tf1.device(self._placement.servers[0]):
            number, global_step, left = self._queues[self._own].dequeue()
        return self.local.assign(number, read_value=False), tf.stack([global_step, left])

    def waiting(self) -> tuple[Any, list[Any]]:
        """How many tokens this worker has not taken, and one of them."""
        with tf1.device(self._placement.servers[0]):
            return self._queues[self._own].size(), self._queues[self._own].dequeue()

    def hand(self, session: Any, workers: Iterable[int], number: int) -> None:
        """Hand tokens to some of the workers, all but the chief."""
        feed = dict(zip(self._token, (number, 0, 0), strict=True))
        session.run([self._numbered, *(self._handed[worker - 1] for worker in workers if worker)], feed)

    def dismiss(self, session: Any, global_step: int, left: int) -> None:
        """Hand tokens that tell all others to leave; who is missing finds one when it comes back."""
        session.run(self._handed, dict(zip(self._token, (0, global_step, left), strict=True)))

    def restart(self, session: Any, number: int, global_step: int) -> None:
        """Begin with a round that nobody knows; who waits for a token of an earlier chief gets one."""
        for emptied in self._emptied:
            _empty(session, emptied)
        feed = dict(zip(self._token, (number, global_step, 0), strict=True))
        session.run([self._numbered, self._local_set], feed)
        session.run(self._handed, feed)

    def join(self, session: Any) -> None:
        """Take up the round that the others are in."""
        # Before the number is read: a token that comes later is of that round.
        _empty(session, self._emptied[self._own])
        number = int(session.run(self._number_read))
        session.run(self._local_set, {self._token[0]: number})


def _empty(session: Any, operation: Any) -> None:
    """Take what is in a queue; somebody else may take it first, for which nobody waits."""
    with suppress(tf.errors.DeadlineExceededError):
        session.run(operation, options=tf1.RunOptions(timeout_in_ms=_EMPTY_MS))


def new_number() -> int:
    """A number for the first round of a chief: above those of earlier chiefs, whose rounds took longer than 1 us."""
    return time.time_ns() // 1000
