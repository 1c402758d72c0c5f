"""Layers without kernels under tensorpack's names, and losses of weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.variables import get_collection
from moxserve.tensorflow.layers.symbolic.registry import VariableHolder, layer_register
from moxserve.tensorflow.layers.symbolic.tower import get_current_tower_context, required_tower
from moxserve.tensorflow.layers.variables import model_variable

__all__ = ["ConcatWith", "Dropout", "PReLU", "regularize_cost", "regularize_cost_from_collection"]


@layer_register(use_scope=None, old_names={"is_training": "training"})
def Dropout(
    inputs: Any,
    keep_prob: float | None = None,
    rate: float | None = None,
    training: bool | None = None,
    noise_shape: Any = None,
) -> Any:
    """Set values to zero at random in training, and scale the others so that the mean stays.

    `Dropout(x, rate=0.5)`, or `Dropout('dropout', x, rate=0.5)`.

    Args:
        inputs: floats.
        keep_prob: probability to *stay*: what old scripts give by position. Say `rate`.
        rate: probability to be set to zero; 0.5 if nothing is given.
        training: whether it does anything; None: as the tower.
        noise_shape: of what is drawn, as `tf.nn.dropout`'s.

    Raises:
        UsageError: a probability is none, or both were given.
    """
    if rate is not None and keep_prob is not None:
        raise UsageError(f"Dropout: both keep_prob={keep_prob} and rate={rate}; give rate alone")
    if keep_prob is not None and keep_prob != 0.5:
        tf1.logging.warning("Dropout(x, %s) keeps %s of the values; say Dropout(x, rate=...)", keep_prob, keep_prob)
    drop = rate if rate is not None else 0.5 if keep_prob is None else 1.0 - keep_prob
    if not 0 <= drop < 1:
        raise UsageError(f"Dropout: a share of {drop} is to be dropped; expected 0 or more, less than 1")
    trains = required_tower("Dropout").is_training if training is None else training
    return tf.nn.dropout(inputs, rate=drop, noise_shape=noise_shape) if trains and drop else tf.identity(inputs)


@layer_register(use_scope=None)
def ConcatWith(inputs: Any, tensor: Any, dim: int) -> Any:
    """Put a tensor, or several, behind another; for chains.

    Args:
        inputs: the first tensor.
        tensor: another, or a list of them.
        dim: the axis along which.
    """
    return tf.concat([inputs, *(tensor if isinstance(tensor, list | tuple) else [tensor])], dim)


@layer_register()
def PReLU(inputs: Any, init: float = 0.001, name: str | None = None) -> Any:
    """Apply ReLU with a learned slope below zero, one for all channels (He et al. 2015, arXiv:1502.01852).

    Variable `alpha []`.

    Args:
        inputs: floats.
        init: first value of the slope.
        name: of the output; None: `output`.
    """
    alpha = model_variable("alpha", [], inputs.dtype, tf1.constant_initializer(init))
    y = tf.identity(tf.nn.relu(inputs) - alpha * tf.nn.relu(-inputs), name=name or "output")
    y.variables = VariableHolder(alpha=alpha)
    return y


def regularize_cost(regex: str, func: Callable[[Any], Any], name: str = "regularize_cost") -> Any:
    """Return the sum of a loss over weights.

    Args:
        regex: is searched for in the names of this tower's trainable variables, such as `fc.*/W`.
        func: gives the loss of one, such as `l2_regularizer(1e-5)`.
        name: of the result.

    Returns:
        A scalar; 0 in a tower that does not train.
    """
    tower = get_current_tower_context()
    found = [v for v in get_collection(tf1.GraphKeys.TRAINABLE_VARIABLES) if re.search(regex, v.op.name)]
    if not found or (tower is not None and not tower.is_training):
        return tf.constant(0.0, tf.float32, name="empty_" + name)
    tf1.logging.info("%s: %s", name, ", ".join(v.op.name for v in found))
    with tf1.name_scope("regularize_cost"):
        losses = [func(variable) for variable in found]
    return tf.add_n(losses, name=name)


def regularize_cost_from_collection(name: str = "regularize_cost") -> Any:
    """Return the sum of this tower's REGULARIZATION_LOSSES; 0 in a tower that does not train.

    Args:
        name: of the result.
    """
    tower = get_current_tower_context()
    losses = get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
    if not losses or (tower is not None and not tower.is_training):
        return tf.constant(0.0, tf.float32, name="empty_" + name)
    return tf.add_n(losses, name=name)
