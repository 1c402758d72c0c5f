"""LeNet as slim has it: larger than the original (LeCun et al. 1998), with ReLUs, max pools and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.heads import check_size, flattened

__all__ = ["lenet"]

_SMALLEST = 4  # both pools halve


def lenet(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.5,
    prediction_fn: Callable[[Any], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Build LeNet: two convolutions 5x5, each with a pool, and two dense layers.

    Args:
        images: `[batch, height, width, channels]`, of 28x28x1 by default; at least 4x4.
        build: how.
        dropout_keep_prob: probability that a unit of fc3 stays while training.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.

    Returns:
        Logits `[batch, classes]`, without classes fc3's output `[batch, 1024]`; and the end points.

    Raises:
        UsageError: images are too small.
    """
    layers = build.layers(initializer=tf1.truncated_normal_initializer(stddev=0.1))
    check_size(layers, images, "lenet", _SMALLEST)
    ends: dict[str, Any] = {}
    with layers.scope("LeNet"):
        ends["conv1"] = layers.conv2d(images, 32, 5, "conv1")
        ends["pool1"] = layers.max_pool(ends["conv1"], 2, "pool1")
        ends["conv2"] = layers.conv2d(ends["pool1"], 64, 5, "conv2")
        ends["pool2"] = layers.max_pool(ends["conv2"], 2, "pool2")
        ends["Flatten"] = flattened(layers, ends["pool2"])
        ends["fc3"] = layers.dense(ends["Flatten"], 1024, "fc3")
        if not build.num_classes:
            return ends["fc3"], ends
        ends["dropout3"] = layers.dropout(ends["fc3"], dropout_keep_prob, "dropout3")
        ends["Logits"] = layers.dense(ends["dropout3"], build.num_classes, "fc4", activation=None)
    with tf1.name_scope("Predictions"):
        ends["Predictions"] = (prediction_fn or tf.nn.softmax)(ends["Logits"])
    return ends["Logits"], ends
