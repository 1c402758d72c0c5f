"""The few layers of `tf.contrib.slim` that the documents' scripts use, with slim's variable names and defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["flatten", "fully_connected", "one_hot_encoding"]


def flatten(inputs: Any, scope: str | None = None) -> Any:
    """Flatten all but the batch dimension: `[batch, ...]` to `[batch, features]`.

    Args:
        inputs: tensor whose dimensions after the first are known.
        scope: name scope.
    """
    with tf1.name_scope(scope, "Flatten", [inputs]):
        features = inputs.shape[1:].num_elements()
        return tf.reshape(
            inputs, [-1 if inputs.shape[0] is None else inputs.shape[0], -1 if features is None else features]
        )


def fully_connected(
    inputs: Any,
    num_outputs: int,
    activation_fn: Callable[[Any], Any] | None = tf.nn.relu,
    weights_initializer: Any = None,
    weights_regularizer: Any = None,
    biases_initializer: Any = None,
    trainable: bool = True,
    scope: str | None = None,
    reuse: bool | None = None,
) -> Any:
    """Add a fully connected layer with variables `SCOPE/weights` and `SCOPE/biases`.

    Args:
        inputs: `[batch, features]`.
        num_outputs: width of the output.
        activation_fn: applied to the output; None for a linear layer. Slim's default is relu.
        weights_initializer: default Glorot uniform.
        weights_regularizer: adds to REGULARIZATION_LOSSES.
        biases_initializer: default zeros.
        trainable: whether the variables are trained.
        scope: variable scope, default `fully_connected`, numbered when taken.
        reuse: whether to reuse the variables of the scope.

    Returns:
        `[batch, num_outputs]`.
    """
    with tf1.variable_scope(scope, "fully_connected", [inputs], reuse=reuse):
        weights = tf1.get_variable(
            "weights",
            [inputs.shape[-1], num_outputs],
            inputs.dtype.base_dtype,
            initializer=weights_initializer or tf1.glorot_uniform_initializer(),
            regularizer=weights_regularizer,
            trainable=trainable,
        )
        biases = tf1.get_variable(
            "biases",
            [num_outputs],
            inputs.dtype.base_dtype,
            initializer=biases_initializer or tf1.zeros_initializer(),
            trainable=trainable,
        )
        outputs = tf.nn.bias_add(tf.matmul(inputs, weights), biases)
        return outputs if activation_fn is None else activation_fn(outputs)


def one_hot_encoding(labels: Any, num_classes: int, on_value: float = 1.0, off_value: float = 0.0) -> Any:
    """Turn `[batch]` integer labels into `[batch, num_classes] float32`; a label out of range gives a row of
    `off_value`.

    Args:
        labels: class indices.
        num_classes: width of the result.
        on_value: at the label's place.
        off_value: elsewhere.
    """
    return tf.one_hot(tf.cast(labels, tf.int64), num_classes, on_value=on_value, off_value=off_value)
