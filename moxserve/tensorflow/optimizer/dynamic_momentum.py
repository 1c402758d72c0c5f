"""`DyMomentumOptimizer`: momentum that moves opposite to the learning rate (Smith, "A disciplined approach to neural
network hyper-parameters", 2018, arXiv:1803.09820).
"""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.optimizer.lars import scaled_by_layer, skipper

__all__ = ["DyMomentumOptimizer"]

_LARS_RATIO, _LARS_EPSILON = 0.001, 1e-9


class DyMomentumOptimizer(tf1.train.MomentumOptimizer):
    """Momentum whose factor is `max_mom` while the learning rate is `min_lr`, `min_mom` while it is `max_lr`, and on
    the line between elsewhere.

    Args:
        learning_rate: a number or a tensor of the global step, such as `linear_cosine_decay` makes.
        max_lr: the largest learning rate of the schedule.
        min_lr: the smallest.
        max_mom: the largest momentum.
        min_mom: the smallest.
        global_step: the counter, for `cooldown`; None for the graph's own.
        max_iteration: steps of the whole training; needed where `cooldown` is not 0.
        use_nesterov: Nesterov's variant.
        cooldown: share of the steps at the end in which the momentum is `max_mom` whatever the learning rate.
        use_lars: scale gradients layer by layer, as the wrapper `lars` does with ratio 0.001 (variables of one
            dimension left alone).
        weight_decay: of `use_lars`; without it weight decay belongs in the loss.

    Raises:
        UsageError: a number is out of its range.
    """

    def __init__(
        self,
        learning_rate: Any,
        max_lr: float,
        min_lr: float,
        max_mom: float = 0.98,
        min_mom: float = 0.85,
        global_step: Any = None,
        max_iteration: int | None = None,
        use_nesterov: bool = False,
        cooldown: float = 0.0,
        use_lars: bool = False,
        weight_decay: float = 0.0,
        name: str = "DyMomentum",
    ) -> None:
        _check(name, max_lr, min_lr, max_mom, min_mom)
        if not 0 <= cooldown < 1 or (cooldown and not max_iteration):
            raise UsageError(
                f"{name}: cooldown={cooldown!r} with max_iteration={max_iteration!r}: expected a share of "
                "all steps from 0 to below 1, and the number of steps"
            )
        if weight_decay < 0:
            raise UsageError(f"{name}: weight_decay={weight_decay!r}, expected a number from 0 on")
        with tf1.name_scope(name):
            rate = tf.cast(learning_rate() if callable(learning_rate) else learning_rate, tf.float32)
            high = tf.clip_by_value((rate - min_lr) / max(max_lr - min_lr, 1e-30), 0.0, 1.0)
            momentum = max_mom - (max_mom - min_mom) * high
            if cooldown:
                step = tf1.train.get_or_create_global_step() if global_step is None else global_step
                cooling = tf.cast(step, tf.float64) >= (1.0 - cooldown) * float(max_iteration or 0)
                momentum = tf.where(cooling, tf.constant(max_mom), momentum)
            momentum = tf.identity(momentum, name="momentum")
        super().__init__(learning_rate, momentum, name=name, use_nesterov=use_nesterov)
        self._dynamic = momentum  # stays when a wrapper takes the momentum over
        self._use_lars, self._weight_decay = use_lars, weight_decay
        self._skip = skipper(None, name)

    def get_momentum(self) -> Any:
        """The momentum as a scalar float32 tensor: `tf.summary.scalar('momentum', optimizer.get_momentum())`."""
        return self._dynamic

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        """Make the operation that updates variables; see `tf.compat.v1.train.Optimizer`."""
        pairs = list(grads_and_vars)
        if self._use_lars:
            pairs = [(g if g is None or self._skip(v) else self._scaled(g, v), v) for g, v in pairs]
        return super().apply_gradients(pairs, global_step, name)

    def _scaled(self, gradient: Any, variable: Any) -> Any:
        return scaled_by_layer(gradient, variable, _LARS_RATIO, self._weight_decay, _LARS_EPSILON)


def _check(name: str, max_lr: float, min_lr: float, max_mom: float, min_mom: float) -> None:
    if not max_lr >= min_lr >= 0:
        raise UsageError(f"{name}: max_lr={max_lr!r}, min_lr={min_lr!r}: expected max_lr >= min_lr >= 0")
    if not 1 > max_mom >= min_mom >= 0:
        raise UsageError(f"{name}: max_mom={max_mom!r}, min_mom={min_mom!r}: expected 1 > max_mom >= min_mom >= 0")
