"""CifarNet: the network of TensorFlow's CIFAR-10 tutorial (after Krizhevsky's cuda-convnet, 2011), as slim has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.heads import check_size, flattened

__all__ = ["cifarnet"]

_SMALLEST = 4  # both pools halve


def cifarnet(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.5,
    prediction_fn: Callable[[Any], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Build CifarNet: two convolutions 5x5, pools and local response normalisations, and three dense layers.

    Only fc3's and fc4's weights decay.

    Args:
        images: `[batch, height, width, channels]`, of 32x32x3 by default; at least 4x4.
        build: how.
        dropout_keep_prob: probability that a unit of fc3 stays while training.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.

    Returns:
        Logits `[batch, classes]`, without classes fc4's output `[batch, 192]`; and the end points.

    Raises:
        UsageError: images are too small.
    """
    convolutions = build.layers(initializer=tf1.truncated_normal_initializer(stddev=0.05), weight_decay=0.0)
    dense = build.layers(
        initializer=tf1.truncated_normal_initializer(stddev=0.04), bias_initializer=tf1.constant_initializer(0.1)
    )
    check_size(convolutions, images, "cifarnet", _SMALLEST)
    ends: dict[str, Any] = {}
    with convolutions.scope("CifarNet"):
        ends["conv1"] = convolutions.conv2d(images, 64, 5, "conv1")
        ends["pool1"] = convolutions.max_pool(ends["conv1"], 2, "pool1")
        ends["conv2"] = convolutions.conv2d(_normalised(convolutions, ends["pool1"], "norm1"), 64, 5, "conv2")
        ends["pool2"] = convolutions.max_pool(_normalised(convolutions, ends["conv2"], "norm2"), 2, "pool2")
        ends["Flatten"] = flattened(dense, ends["pool2"])
        ends["fc3"] = dense.dense(ends["Flatten"], 384, "fc3")
        ends["fc4"] = dense.dense(dense.dropout(ends["fc3"], dropout_keep_prob, "dropout3"), 192, "fc4")
        if not build.num_classes:
            return ends["fc4"], ends
        last = dense.replace(
            initializer=tf1.truncated_normal_initializer(stddev=1 / 192),
            bias_initializer=tf1.zeros_initializer(),
            weight_decay=0.0,
        )
        ends["Logits"] = last.dense(ends["fc4"], build.num_classes, "logits", activation=None)
    with tf1.name_scope("Predictions"):
        ends["Predictions"] = (prediction_fn or tf.nn.softmax)(ends["Logits"])
    return ends["Logits"], ends


def _normalised(layers: Layers, net: Any, name: str) -> Any:
    """Divide each value by a root of the squares of the 9 channels around it.

    TensorFlow does so channels last only; of half precision, in which squares overflow, on some devices only.
    """
    first = layers.data_format == "NCHW"
    with tf1.name_scope(name):
        wide = tf.cast(net, tf.float32)
        wide = tf.transpose(wide, [0, 2, 3, 1]) if first else wide
        wide = tf.nn.lrn(wide, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)
        return tf.cast(tf.transpose(wide, [0, 3, 1, 2]) if first else wide, net.dtype)
