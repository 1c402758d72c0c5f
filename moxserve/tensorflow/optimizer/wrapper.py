"""OptimizerWrapper: an optimizer around another. What all wrappers share: which may hold which, their state, how they
reach the other processes, and helpers for gradients.

    compute_gradients   asked from the outside in: the loss goes through every wrapper
    apply_gradients     asked from the outside in, too: the outermost sees the gradients first, the innermost updates

A wrapper's state is in variables that are saved with the model. Where several processes train apart from each other,
what each keeps for itself comes from `Workers.own_variable`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers import current_workers

__all__ = ["OptimizerWrapper", "chain", "copied", "count_step", "dense", "map_values", "summed", "tensors", "unfit"]

# Collection of operations that a run makes when the variables have their values, before the first step.
AFTER_START = "mox/after_start"

Pairs = list[tuple[Any, Any]]


class OptimizerWrapper(tf1.train.Optimizer):
    """An optimizer around another one; by itself it changes nothing.

    Args:
        optimizer: the one inside, which updates the variables.

    Attributes:
        kind: name for `get_optimizer_wrapper_fn` and for the state's variables.
        meets: the wrapper itself decides when processes meet; only one of a chain may.
        keeps_apart: workers never meet in it, nor inside of it.
        gathers: its updates are made of more than the gradients of one step.
        averages: what it hands on is the mean gradient of an update, where it got single steps' or single workers'.
        per_update: works on what an update is made of, and so belongs inside of those that gather.

    Raises:
        UsageError: `optimizer` is none, or its wrapper does not go inside of this one.
    """

    kind: ClassVar[str] = "wrapper"
    meets: bool = False
    keeps_apart: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    per_update: ClassVar[bool] = False

    def __init__(self, optimizer: Any) -> None:
        super().__init__(use_locking=False, name=self.kind)
        if problem := unfit(optimizer):
            raise UsageError(f"optimizer wrapper {self.kind!r} got {problem}")
        self._optimizer = optimizer
        self._scope: str | None = None
        self._named: dict[str, Any] = {}  # an update may be built more than once
        _check_nesting(self)
        if self.meets or self.gathers:  # what they save is that workers meet at every step
            _warn_if_synchronous()

    @property
    def inner(self) -> Any:
        """The optimizer inside."""
        return self._optimizer

    def insert(self, make: Callable[[Any], Any]) -> None:
        """Put another wrapper between this one and the optimizer inside.

        Args:
            make: makes it around an optimizer.

        Raises:
            UsageError: it does not go there.
        """
        self._optimizer = make(self._optimizer)
        _check_nesting(self)

    # -- the optimizer's part

    def compute_gradients(self, loss: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute gradients; see `tf.compat.v1.train.Optimizer`."""
        return self._optimizer.compute_gradients(loss, *args, **kwargs)

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        """Make the operation that updates variables; see `tf.compat.v1.train.Optimizer`.

        Raises:
            ValueError: no variable has a gradient.
        """
        pairs = [(gradient, variable) for gradient, variable in grads_and_vars if gradient is not None]
        if not pairs:
            raise ValueError(f"{self.kind}: no variable has a gradient")
        with tf1.name_scope(name or self.kind):
            return self._apply(pairs, global_step)

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        """Make the update; `pairs` is not empty and has no None."""
        return self._optimizer.apply_gradients(self._change(pairs), global_step=global_step)

    def _change(self, pairs: Pairs) -> Pairs:
        """Give the gradients for the optimizer inside: the one thing that a plain wrapper does."""
        return pairs

    def get_slot(self, var: Any, name: str) -> Any:
        """Look up a slot of the optimizer inside."""
        return self._optimizer.get_slot(var, name)

    def get_slot_names(self) -> Any:
        """List the slots of the optimizer inside."""
        return self._optimizer.get_slot_names()

    def variables(self) -> list[Any]:
        """List the variables of the optimizer inside and of this wrapper."""
        return [*self._optimizer.variables(), *self.own_variables]

    @property
    def own_variables(self) -> list[Any]:
        """The variables of this wrapper alone; a training may go on from a checkpoint without them."""
        return list(self._named.values())

    # -- state

    def _state(self, name: str, shape: Any, dtype: Any, initial: float | bool = 0) -> Any:
        """Make a variable for this wrapper, outside of any branch of a condition.

        Where processes train apart from each other it is this process's alone.

        Args:
            name: below the wrapper's name.
            shape: its shape.
            dtype: its dtype.
            initial: its first value.
        """
        workers = current_workers()
        if workers is None or not apart():
            return self._global(name, shape, dtype, initial)
        if name not in self._named:
            with tf.init_scope():
                made = workers.own_variable(self._full(name), shape, dtype, _initializer(initial, dtype))
            self._named[name] = made
        return self._named[name]

    def _global(self, name: str, shape: Any, dtype: Any, initial: float | bool = 0) -> Any:
        """Make a variable that is saved with the model's; arguments as of `_state`."""
        if name not in self._named:
            with tf.init_scope():
                self._named[name] = tf1.get_variable(
                    self._full(name), shape, dtype, _initializer(initial, dtype), trainable=False, use_resource=True
                )
        return self._named[name]

    def _full(self, name: str) -> str:
        if self._scope is None:
            self._scope = _unique(self.kind)
        return f"{self._scope}/{name}"

    def _apply_together(self, pairs: Pairs) -> Any:
        """Update with the mean over all processes, which all of them reach at the same time."""
        workers = current_workers()
        if workers is None:
            return self._optimizer.apply_gradients(pairs)
        return workers.apply_together(self._optimizer, pairs)


def apart() -> bool:
    """Whether the run that is being built has several processes that do not make each step together."""
    workers = current_workers()
    return workers is not None and workers.topology.distributed and not workers.topology.synchronous


def replicas() -> int:
    """How many processes train together in the run that is being built."""
    workers = current_workers()
    return 1 if workers is None else workers.topology.num_workers


def chain(optimizer: Any) -> Iterator[Any]:
    """Go from an optimizer to the ones inside of it, itself first."""
    while optimizer is not None:
        yield optimizer
        optimizer = optimizer.inner if isinstance(optimizer, OptimizerWrapper) else None


def copied(optimizer: Any) -> Any:
    """Copy an optimizer and those inside of it, for who changes settings of what belongs to somebody else."""
    made = copy.copy(optimizer)
    if isinstance(made, OptimizerWrapper):
        made._optimizer = copied(made._optimizer)
    return made


def unfit(optimizer: Any) -> str:
    """Say what something is that was given in place of an optimizer of TensorFlow 1.

    Args:
        optimizer: what was given.

    Returns:
        What it is, what was expected, and what to do, as the end of a sentence; empty where it fits.
    """
    if isinstance(optimizer, tf1.train.SyncReplicasOptimizer):
        return (
            "a SyncReplicasOptimizer; mox.run makes workers step together by itself: give the optimizer inside of it, "
            "and --sync_replicas=true (the default)"
        )
    if isinstance(optimizer, tf1.train.Optimizer):
        return ""
    name = type(optimizer).__name__
    if not hasattr(optimizer, "apply_gradients"):
        call = ": call it, as in mox.get_optimizer_fn('sgd', 0.1)()" if callable(optimizer) else ""
        return f"{name}; expected a tf.compat.v1.train.Optimizer{call}"
    return (
        f"{name}, an optimizer of Keras; expected a tf.compat.v1.train.Optimizer: Keras' count steps by themselves and "
        f"give no gradients of a loss. TensorFlow's own: mox.get_optimizer_fn({name.lower()!r}, learning_rate=...)"
    )


def _check_nesting(outer: OptimizerWrapper) -> None:
    inside = [one for one in chain(outer.inner) if isinstance(one, OptimizerWrapper)]
    for one in inside:
        if one.kind == outer.kind and outer.kind != "clip":
            raise UsageError(
                f"optimizer wrapper {outer.kind!r} is twice in a chain", hint="one of them does it: join their options"
            )
        if (outer.meets or outer.keeps_apart) and (one.meets or one.keeps_apart):
            raise UsageError(
                f"optimizer wrappers {outer.kind!r} and {one.kind!r} both decide when workers meet",
                hint="use one of them; batch_gradients goes with the other where sync_on_apply=False",
            )
        if outer.per_update and one.gathers:
            raise UsageError(
                f"optimizer wrapper {outer.kind!r} around {one.kind!r} would see single steps, not what an update is "
                "made of",
                hint=f"the other way round: {outer.kind} inside of {one.kind}",
            )


def _warn_if_synchronous() -> None:
    workers = current_workers()
    if workers is not None and workers.topology.num_workers > 1 and workers.topology.synchronous:
        tf1.logging.warning("Using OptimizerWrapper when sync_replicas is True may cause performance loss.")


def _initializer(initial: float | bool, dtype: Any) -> Any:
    return tf1.constant_initializer(bool(initial) if dtype == tf.bool else initial)


def _unique(kind: str) -> str:
    """Name the state of a graph's first wrapper of a kind after the kind, and number those that follow."""
    named: list[str] = tf1.get_collection_ref("mox/optimizer_wrappers")
    named.append(kind)
    count = named.count(kind)
    return kind if count == 1 else f"{kind}_{count - 1}"


def count_step(global_step: Any, after: Sequence[Any]) -> Any:
    """Make an operation that counts a step when others are done.

    Args:
        global_step: the counter; None counts nothing.
        after: what must be done.
    """
    with tf1.control_dependencies(after):
        if global_step is None:
            return tf.no_op()
        with tf1.colocate_with(global_step):
            return tf.group(tf1.assign_add(global_step, 1))


def map_values(gradient: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to a gradient's numbers, sparse ones included."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def summed(gradient: Any) -> Any:
    """Give a sparse gradient with each row once, the sum of its slices; a dense one as it is.

    Norms and limits of single slices would depend on how often a row is in the batch.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def tensors(gradient: Any) -> tuple[Any, ...]:
    """Give what a gradient is made of, for control dependencies."""
    return (gradient.values, gradient.indices) if isinstance(gradient, tf.IndexedSlices) else (gradient,)


def dense(gradient: Any, variable: Any) -> Any:
    """Give a gradient as a tensor of the variable's shape."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    shape = tf.cast(tf.shape(variable), gradient.indices.dtype)
    return tf.scatter_nd(gradient.indices[:, tf.newaxis], gradient.values, shape)
