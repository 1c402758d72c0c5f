"""AlexNet as of One weird trick for parallelizing convolutional neural networks (Krizhevsky 2014, arXiv:1404.5997).

That is slim's alexnet_v2: one tower, no local response normalisation, and no padding in the first convolution, so that
fc6 is 5x5.
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.heads import DenseHead, check_size, dense_head

__all__ = ["alexnet_v2"]

_SMALLEST = 195  # of which 5x5 are left at fc6


def alexnet_v2(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.5,
    spatial_squeeze: bool = True,
    global_pool: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Build AlexNet: five convolutions, three pools, and three dense layers as convolutions.

    Args:
        images: `[batch, height, width, channels]`, of 224x224x3 by default; at least 195x195. From 227 on logits are a
            map.
        build: how.
        dropout_keep_prob: probability that a unit of fc6 and fc7 stays while training.
        spatial_squeeze: False gives the logits as a map `[batch, height, width, classes]`.
        global_pool: whether the classifier reads the mean of fc7's map.

    Returns:
        Logits `[batch, classes]`, without classes fc7's output; and the end points.

    Raises:
        UsageError: images are too small, or so large that logits are a map that shall be squeezed.
    """
    tenth = tf1.constant_initializer(0.1)
    layers = build.layers(bias_initializer=tenth, collect=frozenset({"conv2d", "max_pool"}))
    check_size(layers, images, "alexnet_v2", _SMALLEST)
    with layers.scope("alexnet_v2"):
        net = layers.conv2d(images, 64, 11, "conv1", stride=4, padding="VALID")
        net = layers.max_pool(net, 3, "pool1")
        net = layers.conv2d(net, 192, 5, "conv2")
        net = layers.max_pool(net, 3, "pool2")
        net = layers.conv2d(net, 384, 3, "conv3")
        net = layers.conv2d(net, 384, 3, "conv4")
        net = layers.conv2d(net, 256, 3, "conv5")
        net = layers.max_pool(net, 3, "pool5")
        dense = layers.replace(initializer=tf1.truncated_normal_initializer(stddev=0.005))
        head = DenseHead(5, (4096, 4096), build.num_classes, dropout_keep_prob, spatial_squeeze, global_pool)
        logits = dense_head(dense, net, head)
    return logits, layers.end_points or {}
