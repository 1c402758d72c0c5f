"""How layers make their variables: by `get_variable`, in the collection of what a model is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["l1_regularizer", "l2_regularizer", "model_variable"]


def model_variable(
    name: str,
    shape: Sequence[int],
    dtype: Any,
    initializer: Any,
    *,
    regularizer: Callable[[Any], Any] | None = None,
    trainable: bool = True,
) -> Any:
    """Return a variable of the current variable scope, in GLOBAL_VARIABLES, MODEL_VARIABLES and, where it is trained,
    TRAINABLE_VARIABLES.

    Args:
        name: within the scope.
        shape: of it.
        dtype: that it is asked for in; a custom getter may store it in another one.
        initializer: function of a shape and a dtype.
        regularizer: gives its loss for REGULARIZATION_LOSSES, which is of `dtype`; added when it is made, not when it
            is shared.
        trainable: whether the optimizer changes it.
    """
    keys = tf1.GraphKeys
    # As TF-Slim's: scripts that compute in half precision add it to a loss of that.
    penalty = None if regularizer is None else lambda variable: tf.cast(regularizer(variable), dtype)
    return tf1.get_variable(
        name,
        list(shape),
        dtype,
        initializer=initializer,
        regularizer=penalty,
        trainable=trainable,
        collections=[keys.GLOBAL_VARIABLES, keys.MODEL_VARIABLES],
    )


def l2_regularizer(scale: float) -> Callable[[Any], Any]:
    """Return the function `weights -> scale * sum(weights ** 2) / 2`; of half precision in float32, where it has room.

    Args:
        scale: factor of the loss.
    """

    def penalty(weights: Any) -> Any:
        wide = _widened(weights)
        return tf.multiply(tf.constant(scale, wide.dtype.base_dtype), tf.nn.l2_loss(wide), name="l2_regularizer")

    return penalty


def l1_regularizer(scale: float) -> Callable[[Any], Any]:
    """Return the function `weights -> scale * sum(|weights|)`; of half precision in float32, where it has room.

    Args:
        scale: factor of the loss.
    """

    def penalty(weights: Any) -> Any:
        wide = _widened(weights)
        total = tf.reduce_sum(tf.abs(wide))
        return tf.multiply(tf.constant(scale, wide.dtype.base_dtype), total, name="l1_regularizer")

    return penalty


def _widened(weights: Any) -> Any:
    return tf.cast(weights, tf.float32) if weights.dtype.base_dtype in (tf.float16, tf.bfloat16) else weights
