"""Workers that make each step together without parameter servers: each has all variables, and their gradients meet in
TensorFlow's collective operations.

All gradients of a loss travel as one vector per dtype, so that a step is one collective, not one a variable. Every
worker then applies the same mean to its own variables, which so stay the same. At the start they are the chief's.

A collective that a process drops out of fails in all others, within a second, and cannot be taken up again by a process
that came back. The job ends then, with exit status 75, and goes on from the last checkpoint when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices, GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import Participant
from moxserve.tensorflow.executor.stepper import Fetcher
from moxserve.tensorflow.executor.workers.ahead import TakenAhead
from moxserve.tensorflow.executor.workers.base import Startup, Workers
from moxserve.tensorflow.executor.workers.bundles import Bundle, farewell, leaving, split, told
from moxserve.tensorflow.executor.workers.lockstep import Lockstep, Member
from moxserve.tensorflow.executor.workers.part import Part
from moxserve.tensorflow.executor.workers.peers import members, wait_for
from moxserve.tensorflow.executor.workers.placement import Placement
from moxserve.tensorflow.executor.workers.server import server_of
from moxserve.tensorflow.executor.workers.wire import Wire

__all__ = ["AllReduceWorkers"]

# Names of what meets, the same in all processes: which group, which collective of it, and which of the session's graphs
# it is in. A server remembers the shape of each collective that it made, so that each phase of each run has its own
# numbers; any do, if no other collective has them.
_GROUP, _FIRST_INSTANCE, _INSTANCES, _PHASES = 7100, 7101, 1000, 100
_STEP_GRAPH, _START_GRAPH, _END_GRAPH, _TOLD_GRAPH = 71, 72, 73, 74
_BROADCAST = {tf.bool, tf.int32, tf.int64, tf.float16, tf.float32, tf.float64}
_LEADER = "/job:worker/replica:0/task:0"
_GRACE_S = 1.0


class AllReduceWorkers(Lockstep, Workers):
    """A worker of a job without parameter servers.

    Args:
        topology: of the job.
        devices: of this process.
        part: which run and attempt this is.
    """

    def __init__(self, topology: Topology, devices: Devices, part: Part) -> None:
        super().__init__(topology, devices)
        name = f"{part.name}/attempt{part.attempt}"
        self._placement = Placement(topology, name, name, on_ps=False)
        self._number = part.run * _PHASES + part.phase
        self.run_options = self._options(_STEP_GRAPH)
        config = topology.session_config()
        self._add_collectives(config)
        self.target = server_of(topology, config, jobs=("worker",)).target
        self._instances = _FIRST_INSTANCE + self._number * _INSTANCES
        self._bundles: list[Bundle] = []
        self._totals: list[Any] = []
        self._updates: list[Any] = []

    def _options(self, graph: int) -> Any:
        """RunOptions for one of the graphs of a session that have collectives; each phase has its own."""
        options = tf1.RunOptions()
        options.experimental.collective_graph_key = graph + 100 * self._number
        return options

    def _add_collectives(self, config: Any) -> None:
        self.devices.configure(config)
        config.experimental.collective_group_leader = _LEADER

    # -- while the graph is built

    @contextmanager
    def _device_scope(self) -> Iterator[None]:
        with self._placement.scope():
            yield

    def apply(self, optimizer: Any, gradients: GradsAndVars, global_step: Any) -> Any:
        """Apply the mean of all workers' gradients to this worker's variables."""
        (bundles,), _ = split(gradients, lambda variable: 0, 1, keep_sparse=False)
        with tf1.control_dependencies(None):
            totals = [self._total(bundle) for bundle in bundles]
            means: GradsAndVars = []
            for bundle, total in zip(bundles, totals, strict=True):
                means += zip(bundle.means(total), bundle.variables, strict=True)
            self._bundles += bundles
            self._totals += totals
            with tf1.control_dependencies(self._updates):
                applied = optimizer.apply_gradients(means, global_step=global_step)
            self._updates.append(applied)
            if global_step is not None:
                with tf1.control_dependencies([applied]):
                    self._news = tf.stack([global_step.read_value(), leaving(totals[0])])
            self._header = totals[0]
        return applied

    def _total(self, bundle: Bundle) -> Any:
        summed = self._collective(bundle.vector)
        return tf1.placeholder_with_default(summed, [bundle.size])

    def _collective(self, tensor: Any) -> Any:
        from tensorflow.python.ops import collective_ops

        return collective_ops.all_reduce(
            tensor, self.topology.num_workers, _GROUP, self._next_instance(), "Add", "Id"
        )  # fmt: skip

    def _next_instance(self) -> int:
        self._instances += 1
        return self._instances

    def own_variable(self, name: str, shape: Any, dtype: Any, initializer: Any) -> Any:
        """Make a variable of this worker; no checkpoint has it."""
        return tf1.get_variable(
            name, shape, dtype, initializer, trainable=False, use_resource=True,
            collections=[tf1.GraphKeys.LOCAL_VARIABLES],
        )  # fmt: skip

    def take_ahead(self, source: Any) -> None:
        """Let an input that may end do so before a step, not in it."""
        if source.endless or source.participants:  # who waits for feeds or queues knows before a step
            return
        ahead = TakenAhead(source.towers)
        source.towers = ahead.towers
        source.participants.append(ahead)

    def participants(self) -> list[Participant]:
        """One that keeps this worker in step."""
        self._from_chief = [self._broadcast(dtype, group) for dtype, group in _by_dtype(tf1.global_variables()).items()]
        self._barrier = self._collective(tf.zeros([1]))
        self._telling = tf1.placeholder(tf.float64, [1])
        self._told = self._collective(self._telling)
        self.wire = Wire()
        self._told_whole, self._all_told = self.wire.beside([self._told]), self.wire.beside(self._totals)
        return [Member(self)]

    def _broadcast(self, dtype: Any, variables: list[Any]) -> Any:
        """Make the operation that gives variables of one dtype the chief's values, or gives the chief's away."""
        from tensorflow.python.ops import collective_ops

        sent = dtype if dtype in _BROADCAST else tf.float32
        sizes = [variable.shape.num_elements() for variable in variables]
        size, instance = self.topology.num_workers, self._next_instance()
        if self.topology.is_chief:
            flat = tf.concat([tf.reshape(tf.cast(v.read_value(), sent), [-1]) for v in variables], axis=0)
            return collective_ops.broadcast_send(flat, [sum(sizes)], sent, size, _GROUP, instance).op
        flat = collective_ops.broadcast_recv([sum(sizes)], sent, size, _GROUP, instance)
        parts = zip(variables, tf.split(flat, sizes), strict=True)
        return tf.group(*(v.assign(tf.cast(tf.reshape(p, v.shape), dtype), read_value=False) for v, p in parts))

    def news(self) -> Any:
        """The global step after the step, and reasons to leave."""
        return self._news

    @property
    def has_all(self) -> bool:
        """The chief has, where a step is one collective; of several, one may be applied and the next one not."""
        return self.topology.is_chief and len(self._totals) == 1

    # -- while the session is open

    def configure(self, config: Any) -> None:
        """Keep the session to this process: only its collectives reach out."""
        self._add_collectives(config)
        config.isolate_session_state = True
        config.device_filters.append(f"/job:worker/task:{self.topology.index}")
        self._config = config

    def start(self, session: Any, startup: Startup) -> None:
        """Restore as the chief, and take its values otherwise."""
        wait_for(members(self.topology, "worker"), self.topology.start_timeout_s)
        session.run(startup.initial)
        for operation in startup.local:
            session.run(operation)
        if self.topology.is_chief:
            startup.restore(session)
        session.run(self._from_chief, options=self._options(_START_GRAPH))
        if startup.spread:
            session.run(startup.spread)

    def from_chief(self, session: Any, value: float) -> float:
        """Wait for the chief's value; not where somebody has left, who would not be there to ask."""
        if self.left:
            return value
        return self._sum(session, value if self.topology.is_chief else 0.0)

    def all_same(self, session: Any, value: int) -> bool:
        """Compare the mean square with the square of the mean; every worker comes to the same result."""
        total, squares = self._sum(session, float(value)), self._sum(session, float(value) ** 2)
        same = squares * self.topology.num_workers == total**2
        if not same:
            time.sleep(_GRACE_S)  # who finds that out leaves: the others must hear of it first
        return same

    def _sum(self, session: Any, value: float) -> float:
        """Add up a number of each worker; all of them ask at the same step."""
        feed, options = {self._telling: [value]}, self._options(_TOLD_GRAPH)
        return float(session.run([self._told, self._told_whole], feed, options=options)[0][0])

    def steps_to_make(self, goal: int, global_step: int) -> int:
        """All count the same."""
        self.goal = goal
        return max(goal - global_step, 0)

    def say_farewell(self, session: Any, reason: int) -> tuple[int, int]:
        """Meet the others without gradients, and apply what they have."""
        feed = farewell(self._bundles, (), reason)
        # A callable, as every other step: one by `session.run` would count as a step that the others do not make.
        fetched, fed = ([tensor.name for tensor in tensors] for tensors in (self._totals, feed))
        totals = Fetcher(session, self.run_options).callable(fetched, fed, (self._all_told.name,))(*feed.values())
        contributors, left = told(totals[self._totals.index(self._header)])
        if not contributors:
            return int(session.run(tf1.train.get_global_step(session.graph))), left
        news = session.run([self._news, *self._updates], dict(zip(self._totals, totals, strict=True)))[0]
        return int(news[0]), int(news[1])

    def finish(self, graph: Any, reason: str) -> None:
        """Wait for each other, until the chief has saved."""
        self.closed()
        if self.apart:
            return
        with tf1.Session(self.target, graph=graph, config=self._config) as own:
            own.run(self._barrier.op, options=self._options(_END_GRAPH))
        time.sleep(_GRACE_S if self.topology.is_chief else 0)  # the others' part of the barrier may still be on its way


def _by_dtype(variables: list[Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for variable in variables:
        groups.setdefault(variable.dtype.base_dtype, []).append(variable)
    return groups
