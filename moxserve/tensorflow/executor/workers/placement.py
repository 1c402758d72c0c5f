"""Where the operations and variables of a distributed graph are: on a parameter server, or on this worker.

    shared   variables of the model and its optimizers: on the parameter servers, each on the one with the fewest bytes
    own      everything else, and variables that are in no global collection (local variables, copies of towers)

Both have resource containers of their own: shared ones one a run, so that a later run of the same processes begins
anew; own ones one an attempt, so that nothing is left of an attempt that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["SHARED_VARIABLES", "Placement"]

# Collection of variables that all workers share and that are no part of the model: no checkpoint has them.
SHARED_VARIABLES = "moxserve/shared_variables"
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


class Placement:
    """Chooses device and container of everything that is built in `scope`.

    Args:
        topology: of the job.
        shared: name of the container of shared variables.
        own: name of the container of this worker's.
        on_ps: whether shared variables are on the parameter servers; otherwise all is this worker's own.
    """

    def __init__(self, topology: Topology, shared: str, own: str, *, on_ps: bool) -> None:
        self.worker = f"/job:worker/replica:0/task:{topology.index}"
        self.servers = [f"/job:ps/replica:0/task:{i}/device:CPU:0" for i in range(len(topology.ps))] if on_ps else []
        self._shared, self._own_container = shared, own
        self._bytes = [0] * len(self.servers)
        self._own_depth = 0

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Build a graph in here."""
        graph = tf1.get_default_graph()
        with graph.container(self._own_container), tf1.device(self._device), tf1.variable_creator_scope(self._create):
            yield

    @contextmanager
    def shared(self, server: int = 0) -> Iterator[None]:
        """What is made in here is on a parameter server, and all workers have it by its name."""
        with tf1.get_default_graph().container(self._shared), tf1.device(self.servers[server]):
            yield

    @contextmanager
    def own(self) -> Iterator[None]:
        """Variables made in here are this worker's."""
        self._own_depth += 1
        try:
            yield
        finally:
            self._own_depth -= 1

    def server_of(self, variable: Any) -> int:
        """Number of the parameter server that has a variable."""
        return self.servers.index(variable.device) if variable.device in self.servers else 0

    def _create(self, next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        given = kwargs.get("collections")
        own = given is not None and not {tf1.GraphKeys.GLOBAL_VARIABLES, SHARED_VARIABLES} & set(given)
        if own or self._own_depth or not self.servers:
            with self.own():
                return next_creator(**kwargs)
        with tf1.get_default_graph().container(self._shared):
            return next_creator(**kwargs)

    def _device(self, operation: Any) -> str:
        spec = tf.DeviceSpec.from_string(operation.device or "")
        if operation.type in _VARIABLES and self.servers and not self._own_depth and spec.job != "worker":
            return self._server_for(operation)
        if spec.job == "ps" and not (operation.type in _VARIABLES and self._own_depth):
            return str(operation.device)
        if operation.inputs and operation.inputs[0].dtype == tf.resource and "/job:ps" in operation.inputs[0].device:
            return str(operation.inputs[0].device)  # what works on a variable is where the variable is
        kept = spec.replace(job=None, replica=None, task=None)
        if spec.job == "ps":
            kept = tf.DeviceSpec()
        return str(tf.DeviceSpec.from_string(self.worker).make_merged_spec(kept).to_string())

    def _server_for(self, operation: Any) -> str:
        if operation.device in self.servers:  # somebody chose one
            return str(operation.device)
        shape = tf.TensorShape(operation.get_attr("shape"))
        size = (shape.num_elements() or 1) * tf.as_dtype(operation.get_attr("dtype")).size
        server = min(range(len(self.servers)), key=self._bytes.__getitem__)
        self._bytes[server] += size
        return self.servers[server]
