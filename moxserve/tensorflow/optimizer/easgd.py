"""`easgd`: elastic averaging (Zhang, Choromanska and LeCun, "Deep learning with Elastic Averaging SGD", 2014,
arXiv:1412.6651).

The variables of the model are the centre: checkpoints, evaluations and exports are of them, as in the paper. What a
worker trains are copies, which the operations of its training step read instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers import current_workers
from moxserve.tensorflow.optimizer.wrapper import (
    AFTER_START,
    OptimizerWrapper,
    Pairs,
    apart,
    count_step,
    replicas,
    tensors,
)

__all__ = ["Easgd"]

_WRITES = ("VarIsInitializedOp", "AssignVariableOp", "AssignSubVariableOp", "AssignAddVariableOp")


class Easgd(OptimizerWrapper):
    """Lets each worker train weights of its own, tied to a common centre by a spring.

    At each `period`-th step a worker with the weights w moves towards the centre c, and the centre towards it:

        w -= alpha * (w - c)        c += alpha * (w - c)

    and the optimizer inside applies each step's gradient to w. A worker's weights, and what the optimizer inside keeps
    of them, are its own; they begin as the centre when the worker does. Workers do not wait for each other (the paper's
    asynchronous algorithm): the centre is on the parameter servers, with `sync_replicas=False`. In a single process all
    is saved in checkpoints (`easgd/<variable>/local`).

    Args:
        optimizer: the one inside.
        period: steps between two moves, tau in the paper.
        alpha: share of the distance that is moved. None: `beta` / number of workers, as in the paper.
        beta: see `alpha`.

    Raises:
        UsageError: a number is out of its range, or the workers step together.
    """

    kind = "easgd"
    gathers = True
    keeps_apart = True

    def __init__(self, optimizer: Any, period: int = 10, alpha: float | None = None, beta: float = 0.9) -> None:
        super().__init__(optimizer)
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise UsageError(f"easgd: period={period!r}, expected a whole number above 0")
        self._alpha = beta / replicas() if alpha is None else alpha
        if not 0 < self._alpha < 1:
            raise UsageError(f"easgd: alpha={self._alpha:g}, expected a share above 0 and below 1")
        self._period = period
        self._local: dict[int, Any] = {}
        self._springs: list[tuple[Any, Any]] = []
        _check_workers()

    def compute_gradients(self, loss: Any, *args: Any, var_list: Any = None, **kwargs: Any) -> Any:
        """Compute gradients with respect to this worker's weights; they come with the model's variables.

        The operations that read the variables until now read the weights from here on.
        """
        variables = list(var_list if var_list is not None else tf1.trainable_variables())
        for variable in variables:
            if id(variable) not in self._local:
                local = self._state(f"{variable.op.name}/local", variable.shape, variable.dtype.base_dtype)
                _read_instead(variable, local)
                self._local[id(variable)] = local
                self._springs.append((local, variable))
        locals_ = [self._local[id(variable)] for variable in variables]
        pairs = self._optimizer.compute_gradients(loss, *args, var_list=locals_, **kwargs)
        return [(gradient, variable) for (gradient, _), variable in zip(pairs, variables, strict=True)]

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        with tf.init_scope():  # a wrapper around this one may make the update in a branch of a condition
            tf1.add_to_collection(AFTER_START, self._start())
        count = self._state("count", [], tf.int64)
        # Not before the gradients are known: they are those of the weights before the move.
        with tf1.control_dependencies([part for gradient, _ in pairs for part in tensors(gradient)]):
            steps = count.assign_add(1, read_value=True)
        due = tf.equal(steps % self._period, 0)
        moved = tf1.cond(due, self._move, lambda: tf.constant(False))
        with tf1.control_dependencies([moved]), _kept_by_this_worker():
            applied = self._optimizer.apply_gradients([(g, self._local[id(v)]) for g, v in pairs])
        return count_step(global_step, [applied])

    def _move(self) -> Any:
        forces = [self._alpha * (local.read_value() - center.read_value()) for local, center in self._springs]
        with tf1.control_dependencies(forces):
            moves = []
            for force, (local, center) in zip(forces, self._springs, strict=True):
                moves.append(local.assign_sub(force, read_value=False))
                moves.append(center.assign_add(force, read_value=False))
        with tf1.control_dependencies(moves):
            return tf.constant(True)

    def _start(self) -> Any:
        """Put the weights where the centre is, once in their life; run when the variables have their values."""
        begun = self._state("begun", [], tf.bool, False)

        def begin() -> Any:
            placed = [local.assign(center.read_value(), read_value=False) for local, center in self._springs]
            with tf1.control_dependencies(placed), tf1.control_dependencies([begun.assign(True, read_value=False)]):
                return tf.constant(True)

        return tf1.cond(begun.read_value(), lambda: tf.constant(True), begin)


def _check_workers() -> None:
    workers = current_workers()
    if workers is None:
        return
    topology = workers.topology
    if topology.num_devices > 1 and topology.variable_update != "parameter_server":
        raise UsageError(
            f"easgd keeps copies of the variables, and so does --variable_update={topology.variable_update} on "
            f"{topology.num_devices} devices",
            hint="leave --variable_update out",
        )
    if not topology.distributed:
        return
    if topology.synchronous or topology.variable_update == "distributed_replicated":
        raise UsageError(
            "easgd is for workers that step apart, and these step together"
            if topology.synchronous
            else "easgd keeps copies of the variables, and so does --variable_update=distributed_replicated",
            hint="give --sync_replicas=false, --ps_hosts, and leave --variable_update out",
        )


@contextmanager
def _kept_by_this_worker() -> Iterator[None]:
    """Variables made in here are as much this worker's as its weights are: no other worker sees them."""
    if not apart():
        yield
        return

    def create(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        return next_creator(**{**kwargs, "collections": [tf1.GraphKeys.LOCAL_VARIABLES]})

    with tf1.variable_creator_scope(create):
        yield


def _read_instead(variable: Any, local: Any) -> None:
    """Make all operations of the graph that read a variable read another one, on its device.

    What is fetched by the variable's own name stays the variable.
    """
    own = f"{variable.op.name}/Read/"
    for operation in variable.handle.consumers():
        if operation.type in _WRITES or operation.name.startswith(own):
            continue
        for index, given in enumerate(operation.inputs):
            if given is variable.handle:
                operation._update_input(index, local.handle)
        if operation.type in ("ReadVariableOp", "ResourceGather", "ResourceGatherNd"):
            operation._set_device(local.device)
