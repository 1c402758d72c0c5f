"""The network of `lenet`. Variables have slim's names and shapes, so that checkpoints of both fit:

LeNet/conv1/weights [5, 5, channels, 32]    LeNet/fc3/weights [height/4 * width/4 * 64, 1024]
LeNet/conv2/weights [5, 5, 32, 64]          LeNet/fc4/weights [1024, classes]        (and biases each)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["network"]


def network(images: Any, classes: int, training: bool, *, keep_prob: float, weight_decay: float) -> tuple[Any, Any]:
    """Build the graph.

    Args:
        images: `[batch, height, width, channels] float32`, fixed but for the batch.
        classes: how many.
        training: whether units are dropped.
        keep_prob: probability that a unit of fc3 stays.
        weight_decay: factor of the L2 loss on weights.

    Returns:
        Logits `[batch, classes] float32`, and the L2 loss.
    """
    import tensorflow as tf

    weights: list[Any] = []
    with tf.compat.v1.variable_scope("LeNet"):
        net = _convolution(images, 32, "conv1", weights)
        net = tf.nn.max_pool2d(net, 2, 2, "VALID", name="pool1")
        net = _convolution(net, 64, "conv2", weights)
        net = tf.nn.max_pool2d(net, 2, 2, "VALID", name="pool2")
        net = tf.reshape(net, [-1, math.prod(net.shape[1:].as_list())], name="Flatten")
        net = tf.nn.relu(_dense(net, 1024, "fc3", weights))
        if training and keep_prob < 1:
            net = tf.nn.dropout(net, rate=1 - keep_prob, name="dropout3")
        logits = _dense(net, classes, "fc4", weights)
    penalty = weight_decay * tf.add_n([tf.nn.l2_loss(w) for w in weights]) if weight_decay else 0.0
    return logits, penalty


def _parameters(shape: Sequence[int], weights: list[Any]) -> tuple[Any, Any]:
    import tensorflow as tf

    v1 = tf.compat.v1
    groups = [v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.MODEL_VARIABLES]
    glorot = v1.glorot_uniform_initializer()
    weight = v1.get_variable("weights", shape, tf.float32, glorot, collections=groups)
    bias = v1.get_variable("biases", shape[-1:], tf.float32, v1.zeros_initializer(), collections=groups)
    weights.append(weight)
    return weight, bias


def _convolution(net: Any, filters: int, name: str, weights: list[Any]) -> Any:
    import tensorflow as tf

    with tf.compat.v1.variable_scope(name):
        weight, bias = _parameters([5, 5, int(net.shape[-1]), filters], weights)
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(net, weight, 1, "SAME"), bias))


def _dense(net: Any, units: int, name: str, weights: list[Any]) -> Any:
    import tensorflow as tf

    with tf.compat.v1.variable_scope(name):
        weight, bias = _parameters([int(net.shape[-1]), units], weights)
        return tf.nn.bias_add(tf.matmul(net, weight), bias)
