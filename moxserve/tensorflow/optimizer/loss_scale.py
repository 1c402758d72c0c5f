"""`loss_scale`: gradients of half-precision layers are kept from becoming zero (Micikevicius et al., "Mixed Precision
Training", 2017, arXiv:1710.03740).
"""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper, Pairs, apart, chain, count_step, map_values

__all__ = ["LossScale"]

_LARGEST = 2.0**127  # the next doubling would leave float32


class LossScale(OptimizerWrapper):
    """Multiplies the loss by a number, and divides the gradients by it.

    Static: the number stays; in exact arithmetic nothing changes. Dynamic: it is halved whenever a gradient is infinite
    or no number, and the update of that step is left out (the step counts); it is doubled after `window` good updates
    in a row.

    Args:
        optimizer: the one inside.
        scale: the number; where dynamic, the first one. None: 1024, or 32768 where dynamic.
        dynamic: whether it changes.
        window: good updates until it is doubled.
        minimum: it is never halved below this.

    Raises:
        UsageError: a number is not positive, or a dynamic scale is around a wrapper in which workers meet.
    """

    kind = "loss_scale"

    def __init__(
        self,
        optimizer: Any,
        scale: float | None = None,
        dynamic: bool = False,
        window: int = 2000,
        minimum: float = 1.0,
    ) -> None:
        super().__init__(optimizer)
        first = scale if scale is not None else 32768.0 if dynamic else 1024.0
        if not 0 < first <= _LARGEST or not 0 < minimum <= _LARGEST or window < 1:
            raise UsageError(
                f"loss_scale: scale={first!r}, window={window!r}, minimum={minimum!r}: expected numbers above 0"
            )
        self._first, self._dynamic, self._window, self._minimum = float(first), bool(dynamic), window, minimum
        self._scale: Any = None
        meeting = next((one for one in chain(optimizer) if getattr(one, "meets", False)), None)
        if dynamic and apart() and meeting is not None:
            raise UsageError(
                f"a dynamic loss_scale around {meeting.kind!r} would let one worker leave out a step at which the "
                "others wait for it",
                hint=f"put it inside: {meeting.kind} around loss_scale; or use a static scale",
            )

    @property
    def scale(self) -> Any:
        """The number: a variable where it is dynamic."""
        if self._scale is None:
            self._scale = (
                self._state("scale", [], tf.float32, max(self._first, self._minimum)) if self._dynamic else self._first
            )
        return self._scale

    def compute_gradients(self, loss: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the gradients of the loss, by way of the scaled loss."""
        scale = self.scale.read_value() if self._dynamic else tf.constant(self._first)
        scaled = (
            (lambda: loss() * tf.cast(scale, loss().dtype)) if callable(loss) else loss * tf.cast(scale, loss.dtype)
        )
        pairs = self._optimizer.compute_gradients(scaled, *args, **kwargs)
        return [(None if g is None else map_values(g, lambda x: _unscaled(x, scale)), v) for g, v in pairs]

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        if not self._dynamic:
            return self._optimizer.apply_gradients(pairs, global_step=global_step)
        good = self._state("good", [], tf.int64)
        with tf.init_scope():
            tf1.summary.scalar("loss_scale", self.scale.read_value())
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g, _ in pairs]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])

        def update() -> Any:
            with tf1.control_dependencies([self._optimizer.apply_gradients(pairs)]):
                count = good.assign_add(1, read_value=True)
            return self._set(tf.where(tf.equal(count % self._window, 0), self.scale * 2.0, self.scale.read_value()))

        def leave_out() -> Any:
            with tf1.control_dependencies([good.assign(0, read_value=False)]):
                return self._set(self.scale * 0.5)

        done = tf1.cond(finite, update, leave_out)
        return count_step(global_step, [done])

    def _set(self, value: Any) -> Any:
        changed = self.scale.assign(tf.clip_by_value(value, self._minimum, _LARGEST), read_value=False)
        with tf1.control_dependencies([changed]):
            return tf.constant(True)


def _unscaled(values: Any, scale: Any) -> Any:
    """Divide by the scale, which may be larger than what a half-precision dtype can hold."""
    wide = tf.float64 if values.dtype == tf.float64 else tf.float32
    return tf.cast(tf.cast(values, wide) / tf.cast(scale, wide), values.dtype)
