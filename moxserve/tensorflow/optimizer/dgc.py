"""`dgc`: deep gradient compression (Lin, Han, Mao, Wang and Dally, "Deep Gradient Compression: Reducing the
Communication Bandwidth for Distributed Training", 2017, arXiv:1712.01887).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers import current_workers
from moxserve.tensorflow.optimizer.dynamic_momentum import DyMomentumOptimizer
from moxserve.tensorflow.optimizer.wrapper import (
    OptimizerWrapper,
    Pairs,
    apart,
    chain,
    copied,
    count_step,
    dense,
    replicas,
)

__all__ = ["DeepGradientCompression"]

_RAMP = (0.75, 0.9375, 0.984375, 0.996, 0.999)
_TYPES = ("vanilla", "nesterov")


class DeepGradientCompression(OptimizerWrapper):
    """Sends the largest elements of each gradient; the rest adds up until it is large enough.

    Each worker keeps for each variable a momentum u and a sum v. With the gradient g of a step (clipped first):

        u = momentum * u + g        v = v + u        sent = the k largest of v, by absolute value
        u, v = 0 where sent (momentum factor masking)

    and the optimizer inside applies the mean of what the workers sent. k = ceil((1 - sparsity) * elements), of each
    variable, at least 1. The momentum is here ("momentum correction"): the optimizer inside is sgd, or momentum, whose
    factor moves here.

    Args:
        optimizer: the one inside: sgd, momentum, or a wrapper around one of them.
        sparsity: share of elements that is not sent, one number per epoch; the last one stays. Also as text:
            `0.75,0.9375,0.984375,0.996,0.999`, which is the default.
        steps_per_epoch: steps of an epoch; needed where `sparsity` has more than one number.
        momentum: None: that of the optimizer inside, 0.9 for sgd.
        momentum_type: `vanilla` or `nesterov`. None: that of the optimizer inside.
        momentum_factor_masking: whether u is set to 0 where something was sent.
        clip_norm: limit for the global norm of a worker's gradients, divided by the root of the number of workers as in
            the paper; 0 is off.
        min_size: variables with fewer elements are sent whole; 1 sends none whole.

    Raises:
        UsageError: a value is out of its range, or the optimizer inside is none of these.
    """

    kind = "dgc"
    meets = True
    gathers = True

    def __init__(
        self,
        optimizer: Any,
        sparsity: float | str | Sequence[float] = _RAMP,
        steps_per_epoch: int | None = None,
        momentum: float | None = None,
        momentum_type: str | None = None,
        momentum_factor_masking: bool = True,
        clip_norm: float = 0.0,
        min_size: int = 1,
    ) -> None:
        super().__init__(optimizer)
        self._ramp = _sparsities(sparsity)
        if len(self._ramp) > 1 and not (steps_per_epoch and steps_per_epoch >= 1):
            raise UsageError(
                f"dgc: steps_per_epoch={steps_per_epoch!r}, and sparsity has {len(self._ramp)} numbers, one per epoch",
                hint="steps_per_epoch = samples of an epoch / (batch_size * num_gpus * workers); or sparsity=0.999",
            )
        if momentum_type is not None and momentum_type not in _TYPES:
            raise UsageError(f"dgc: unknown momentum_type {momentum_type!r}; {did_you_mean(momentum_type, _TYPES)}")
        if clip_norm < 0 or min_size < 1:
            raise UsageError(f"dgc: clip_norm={clip_norm!r}, min_size={min_size!r}: expected limits above 0")
        self._epoch = float(steps_per_epoch or 1)
        self._optimizer = copied(optimizer)  # what is given keeps its momentum: it may be given again
        self._momentum, self._nesterov = _take_momentum(self._optimizer, momentum, momentum_type)
        self._masking, self._clip_norm, self._min_size = momentum_factor_masking, clip_norm, min_size

    def sparsity(self, global_step: Any = None) -> Any:
        """The share of elements that is not sent at this step, as a scalar float64 tensor, for summaries."""
        step = tf1.train.get_or_create_global_step() if global_step is None else global_step
        epoch = tf.cast(tf.cast(tf.convert_to_tensor(step), tf.float64) / self._epoch, tf.int32)
        return tf.gather(tf.constant(self._ramp, tf.float64), tf.minimum(epoch, len(self._ramp) - 1))

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        gradients = [dense(gradient, variable) for gradient, variable in pairs]
        if self._clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm / math.sqrt(replicas()))
        kept = 1.0 - self.sparsity(global_step)
        parts = [self._compress(g, v, kept) for g, (_, v) in zip(gradients, pairs, strict=True)]
        applied = (
            self._send(parts) if apart() else self._optimizer.apply_gradients([(p.dense(), p.variable) for p in parts])
        )
        return count_step(global_step, [applied, *(clear for part in parts for clear in part.cleared)])

    def _compress(self, gradient: Any, variable: Any, kept: Any) -> _Part:
        """Add a gradient to what waits; give what is sent."""
        name, dtype = variable.op.name, variable.dtype.base_dtype
        u = self._state(f"{name}/momentum", variable.shape, dtype)
        v = self._state(f"{name}/waiting", variable.shape, dtype)
        factor = tf.cast(self._momentum, dtype)
        momentum = factor * (u.read_value() + gradient) if self._nesterov else factor * u.read_value() + gradient
        waiting = v.read_value() + momentum + (gradient if self._nesterov else 0.0)
        places = self._largest(waiting, kept)
        values = tf.gather(tf.reshape(waiting, [-1]), places)
        marked = tf.scatter_nd(places[:, tf.newaxis], tf.ones_like(places), [waiting.shape.num_elements()])
        mask = tf.reshape(marked > 0, waiting.shape)
        zero = tf.zeros_like(waiting)
        left = tf.where(mask, zero, momentum) if self._masking else momentum
        with tf1.control_dependencies([values]):
            cleared = [
                u.assign(left, read_value=False),
                v.assign(tf.where(mask, zero, waiting), read_value=False),
            ]
        return _Part(variable, places, values, cleared)

    def _largest(self, waiting: Any, kept: Any) -> Any:
        """Find the elements that are sent: their places in the flat variable, `[k] int32`."""
        size = waiting.shape.num_elements()
        if size < self._min_size:
            return tf.range(size)
        # Rounding of 1 - 0.75 must not make 3 elements out of 2.
        count = tf.clip_by_value(tf.cast(tf.math.ceil(kept * size - 1e-6), tf.int32), 1, size)
        return tf.math.top_k(tf.reshape(tf.abs(waiting), [-1]), count, sorted=False)[1]

    def _send(self, parts: list[_Part]) -> Any:
        """Add what is sent to sums beside the variables, which all workers share, and have their mean applied.

        Only the elements that are sent, and their places, go from a worker to the parameter servers.
        """
        senders = self._global("senders", [], tf.float32)
        added: list[Any] = []
        sums: Pairs = []
        for part in parts:
            size, dtype = part.variable.shape.num_elements(), part.variable.dtype.base_dtype
            total = self._global(f"{part.variable.op.name}/sent", [size], dtype)
            added.append(total.scatter_nd_add(part.places[:, tf.newaxis], part.values).op)
            sums.append((total, part.variable))
        with tf1.control_dependencies(added):
            counted = senders.assign_add(1.0, read_value=False)
        with tf1.control_dependencies([counted]):
            here = tf.identity(tf.constant(1.0))
        workers = current_workers()
        gathered = _Gathered(self._optimizer, sums, senders)
        return gathered.apply_gradients([]) if workers is None else workers.apply_together(gathered, [(here, senders)])


@dataclass
class _Part:
    """What is sent of a variable's gradient.

    Attributes:
        variable: whose.
        places: in the flat variable, `[k] int32`.
        values: `[k]`.
        cleared: operations that take it off what waits.
    """

    variable: Any
    places: Any
    values: Any
    cleared: list[Any]

    def dense(self) -> Any:
        """As a tensor of the variable's shape."""
        size = self.variable.shape.num_elements()
        return tf.reshape(tf.scatter_nd(self.places[:, tf.newaxis], self.values, [size]), self.variable.shape)


class _Gathered(tf1.train.Optimizer):
    """Applies the mean of what has been added to some sums, whatever gradients it is given, and clears them."""

    def __init__(self, optimizer: Any, sums: Pairs, senders: Any) -> None:
        super().__init__(use_locking=False, name="dgc")
        self._optimizer, self._sums, self._senders = optimizer, sums, senders

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        """Make the operation; see `tf.compat.v1.train.Optimizer`."""
        given = [gradient for gradient, _ in grads_and_vars]
        with tf1.control_dependencies(given):  # everybody's are there
            count = self._senders.read_value()
            means = [
                (tf.reshape(total.read_value() / tf.cast(count, total.dtype), variable.shape), variable)
                for total, variable in self._sums
            ]
        with tf1.control_dependencies([self._optimizer.apply_gradients(means, global_step=global_step)]):
            cleared = [total.assign(tf.zeros(total.shape, total.dtype), read_value=False) for total, _ in self._sums]
            return tf.group(*cleared, self._senders.assign(0.0, read_value=False), name=name)


def _sparsities(given: float | str | Sequence[float]) -> tuple[float, ...]:
    try:
        if isinstance(given, str):
            numbers = tuple(float(part) for part in given.split(","))
        else:
            numbers = (float(given),) if isinstance(given, (int, float)) else tuple(float(part) for part in given)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(0 <= number < 1 for number in numbers):
        raise UsageError(
            f"dgc: sparsity={given!r}, expected shares from 0 to below 1: 0.75,0.9375,0.984375,0.996,0.999"
        )
    return numbers


def _take_momentum(optimizer: Any, momentum: float | None, kind: str | None) -> tuple[Any, bool]:
    """Move the momentum of the optimizer inside to here: the factor, and whether it is Nesterov's."""
    base = list(chain(optimizer))[-1]
    factor: Any = 0.9
    nesterov = False
    if isinstance(base, tf1.train.MomentumOptimizer):
        factor, nesterov = base._momentum, bool(base._use_nesterov)
        base._momentum, base._use_nesterov = 0.0, False
        if isinstance(base, DyMomentumOptimizer):
            factor = base.get_momentum()
    elif not isinstance(base, tf1.train.GradientDescentOptimizer):
        raise UsageError(
            f"dgc around {type(base).__name__}: what is sent is zero in most places, which its averages of gradients "
            "are not made for",
            hint="use sgd or momentum inside of dgc",
        )
    if momentum is not None:
        if not 0 <= momentum < 1:
            raise UsageError(f"dgc: momentum={momentum!r}, expected a number from 0 to below 1")
        factor = momentum
    return factor, nesterov if kind is None else kind == "nesterov"
