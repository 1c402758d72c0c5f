"""`lars`: layer-wise adaptive rate scaling (You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks",
2017, arXiv:1708.03888).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper, Pairs, dense, map_values, summed

__all__ = ["Lars", "Skip", "scaled_by_layer", "skipper"]

Skip = str | Sequence[str] | Callable[[Any], bool] | None


class Lars(OptimizerWrapper):
    """Scales each layer's gradient by how large its weights are against it.

    For weights w with the gradient g the optimizer inside gets

        ratio * |w| / (|g| + weight_decay * |w| + epsilon) * (g + weight_decay * w)

    and g + weight_decay * w where |w| or |g| is 0. The loss must not have the weight decay a second time. Skipped
    variables keep their gradients, without weight decay.

    Args:
        optimizer: the one inside: momentum in the paper.
        ratio: the trust ratio, eta in the paper.
        weight_decay: beta in the paper.
        epsilon: added to the denominator.
        skip: which variables are left alone: regular expressions for their names (one, comma-separated, or a list), or
            a function of a variable. None: those of one dimension or none, which are biases and batch norms.

    Raises:
        UsageError: a number is out of its range, or `skip` is none of these.
    """

    kind = "lars"
    per_update = True

    def __init__(
        self,
        optimizer: Any,
        ratio: float = 0.001,
        weight_decay: float = 0.0,
        epsilon: float = 1e-9,
        skip: Skip = None,
    ) -> None:
        super().__init__(optimizer)
        for name, value, legal in (
            ("ratio", ratio, ratio > 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
            ("epsilon", epsilon, epsilon >= 0),
        ):
            if not legal:
                raise UsageError(f"lars: {name}={value!r} is out of range")
        self._numbers = (ratio, weight_decay, epsilon)
        self._skip = skipper(skip, self.kind)

    def _change(self, pairs: Pairs) -> Pairs:
        return [(g if self._skip(v) else scaled_by_layer(g, v, *self._numbers), v) for g, v in pairs]


def scaled_by_layer(gradient: Any, variable: Any, ratio: float, weight_decay: float, epsilon: float) -> Any:
    """Scale a gradient as `Lars` does; the norms are taken in float32."""
    weights = variable.read_value()
    gradient = dense(gradient, variable) if weight_decay else summed(gradient)
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    weight_norm = tf.norm(tf.cast(weights, tf.float32))
    gradient_norm = tf.norm(tf.cast(values, tf.float32))
    trust = ratio * weight_norm / (gradient_norm + weight_decay * weight_norm + epsilon)
    trust = tf.where((weight_norm > 0) & (gradient_norm > 0), trust, tf.ones_like(trust))
    if weight_decay:
        gradient = gradient + tf.cast(weight_decay, weights.dtype) * weights
    return map_values(gradient, lambda x: tf.cast(trust, x.dtype) * x)


def skipper(skip: Skip, where: str) -> Callable[[Any], bool]:
    """Make the function that says which variables a wrapper leaves alone.

    Args:
        skip: as in `Lars`.
        where: the wrapper, for the message.

    Raises:
        UsageError: `skip` is neither a pattern, nor a list of them, nor a function.
    """
    if skip is None:
        return lambda variable: variable.shape.rank is not None and variable.shape.rank <= 1
    if callable(skip):
        chosen: Callable[[Any], bool] = skip
        return chosen
    parts = skip.split(",") if isinstance(skip, str) else list(skip)
    if not all(isinstance(part, str) for part in parts):
        raise UsageError(f"{where}: skip={skip!r}, expected patterns of variable names, or a function of a variable")
    try:
        patterns = [re.compile(part.strip()) for part in parts if part.strip()]
    except re.error as error:
        raise UsageError(f"{where}: skip={skip!r} is not a regular expression: {error}") from error
    return lambda variable: any(pattern.search(variable.op.name) for pattern in patterns)
