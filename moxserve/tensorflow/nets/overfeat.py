"""OverFeat, the fast model of Integrated recognition, localization and detection using convolutional networks.

Sermanet et al. 2014, arXiv:1312.6229.
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.heads import DenseHead, check_size, dense_head

__all__ = ["overfeat"]

_SMALLEST = 231  # of which 6x6 are left at fc6


def overfeat(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.5,
    spatial_squeeze: bool = True,
    global_pool: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Build OverFeat: five convolutions, three pools, and three dense layers as convolutions.

    Args:
        images: `[batch, height, width, channels]`, of 231x231x3 by default, which is the smallest size. From 263 on
            logits are a map.
        build: how.
        dropout_keep_prob: probability that a unit of fc6 and fc7 stays while training.
        spatial_squeeze: False gives the logits as a map `[batch, height, width, classes]`.
        global_pool: whether the classifier reads the mean of fc7's map.

    Returns:
        Logits `[batch, classes]`, without classes fc7's output; and the end points.

    Raises:
        UsageError: images are too small, or so large that logits are a map that shall be squeezed.
    """
    layers = build.layers(collect=frozenset({"conv2d", "max_pool"}))
    check_size(layers, images, "overfeat", _SMALLEST)
    with layers.scope("overfeat"):
        net = layers.conv2d(images, 64, 11, "conv1", stride=4, padding="VALID")
        net = layers.max_pool(net, 2, "pool1")
        net = layers.conv2d(net, 256, 5, "conv2", padding="VALID")
        net = layers.max_pool(net, 2, "pool2")
        net = layers.conv2d(net, 512, 3, "conv3")
        net = layers.conv2d(net, 1024, 3, "conv4")
        net = layers.conv2d(net, 1024, 3, "conv5")
        net = layers.max_pool(net, 2, "pool5")
        dense = layers.replace(
            initializer=tf1.truncated_normal_initializer(stddev=0.005), bias_initializer=tf1.constant_initializer(0.1)
        )
        head = DenseHead(6, (3072, 4096), build.num_classes, dropout_keep_prob, spatial_squeeze, global_pool)
        logits = dense_head(dense, net, head)
    return logits, layers.end_points or {}
