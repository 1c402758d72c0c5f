"""What a parameter server does: it serves until all workers have said that they are done.

Each worker that ends a run says so to every parameter server, in a queue that the server itself has. The number of the
run goes with it: a parameter server that had to be started again, and is in an earlier run of its script than the
workers, learns so that these runs are over.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from moxserve.errors import InterruptedRunError, WorkersLostError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.signals import SignalGuard
from moxserve.tensorflow.executor.spec import RunResult
from moxserve.tensorflow.executor.workers.part import Part
from moxserve.tensorflow.executor.workers.peers import POLL_S, Reminder, members, unreachable
from moxserve.tensorflow.executor.workers.server import own_peer, server_of

__all__ = ["leave", "serve"]

_CAPACITY = 4096
_GRACE_S = 0.5
_PATIENCE_S = 60.0
_LOOK_S = 3.0
# Which run each worker has ended, as far as this process was told.
_ended: dict[int, int] = {}


def _queue(server: int) -> Any:
    """The queue of a parameter server in which workers say (their number, the number of the run that they ended)."""
    with tf1.device(f"/job:ps/replica:0/task:{server}/device:CPU:0"):
        return tf1.FIFOQueue(_CAPACITY, [tf.int64, tf.int64], [(), ()], shared_name=f"moxserve_left_{server}")


def leave(topology: Topology, run: int, config: Any) -> None:
    """Tell every parameter server that this worker has ended a run.

    One that is just being started again is waited for; it would wait for this worker otherwise.
    """
    for peer in members(topology, "ps"):
        until = time.monotonic() + _PATIENCE_S
        while not _told(topology, peer.index, run, config):
            if time.monotonic() > until:
                tf1.logging.warning("%s does not answer: it cannot be told that the training is over", peer)
                break
            time.sleep(POLL_S)


def _told(topology: Topology, server: int, run: int, config: Any) -> bool:
    if unreachable([members(topology, "ps")[server]]):
        return False
    filtered = tf1.ConfigProto()
    filtered.CopyFrom(config)
    del filtered.device_filters[:]
    filtered.device_filters.extend([f"/job:ps/task:{server}", f"/job:worker/task:{topology.index}"])
    try:
        with tf1.Graph().as_default():
            told = _queue(server).enqueue([topology.index, run])
            with tf1.Session(server_of(topology, config).target, config=filtered) as session:
                session.run(told)
        return True
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        return False


def serve(part: Part, mode: str) -> RunResult:
    """Serve as the parameter server that this process is, until all workers have ended the run.

    A run that does without parameter servers (EVAL, PREDICT, the workers have the variables themselves) is over at
    once.

    Args:
        part: of this process.
        mode: of the run.

    Raises:
        InterruptedRunError: a signal came.
        WorkersLostError: a worker did not start in time.
    """
    topology = part.topology
    result = RunResult(mode, start_step=0, global_step=0, local_steps=0, stop_reason="no_servers_needed")
    if not part.run or topology.without_servers:
        tf1.logging.info("%s: this %s needs no parameter server", own_peer(topology), mode)
        return result
    config = topology.session_config()
    config.device_count["GPU"] = 0
    server = server_of(topology, config)
    config.device_filters.append(f"/job:ps/task:{topology.index}")
    tf1.logging.info("%s serves until %d worker(s) are done", own_peer(topology), topology.num_workers)
    with tf1.Graph().as_default() as graph, tf1.Session(server.target, graph=graph, config=config) as session:
        queue = _queue(topology.index)
        size, said = queue.size(), queue.dequeue()
        watch = _Watch(topology)
        with SignalGuard() as guard:
            while missing := [i for i in range(topology.num_workers) if _ended.get(i, 0) < part.run]:
                for _ in range(int(session.run(size))):
                    worker, run = map(int, session.run(said))
                    _ended[worker] = max(run, _ended.get(worker, 0))
                if guard.signum:
                    raise InterruptedRunError("the parameter server was stopped by a signal", guard.signum)
                watch.look(missing)
                time.sleep(POLL_S / 2)
    tf1.logging.info("%s: all workers are done", own_peer(topology))
    time.sleep(_GRACE_S)  # the last worker's call has its answer by then
    return replace(result, stop_reason="workers_done")


class _Watch:
    """Looks after the workers of a parameter server, and says which are missing."""

    def __init__(self, topology: Topology) -> None:
        self._workers = members(topology, "worker")
        self._timeout_s = topology.start_timeout_s
        self._reminder = Reminder(self._timeout_s)
        self._seen: set[int] = set()
        self._next_look = 0.0

    def look(self, missing: list[int]) -> None:
        """Every few seconds, look which of the workers that have not ended accept connections.

        Raises:
            WorkersLostError: one has not been seen in time.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        gone = unreachable([self._workers[i] for i in missing])
        self._seen.update(set(missing) - {peer.index for peer in gone})
        never = [peer for peer in gone if peer.index not in self._seen]
        if never and self._reminder.over:
            raise WorkersLostError(
                f"no sign within {self._timeout_s} s (flag --session_timeout) of {', '.join(map(str, never))}",
                hint="start these processes, with the same --ps_hosts and --worker_hosts",
            )
        if not gone or not self._reminder.due():
            return
        for peer in gone:
            known = peer.index in self._seen
            text = "does not answer any more: start it again, or end this job" if known else "is it started?"
            tf1.logging.info("waiting for %s (%d s): %s", peer, self._reminder.waited_s, text)
