"""MobileNet v1: depthwise separable convolutions, a batch norm and a ReLU6 after each half.

MobileNets (Howard et al. 2017, arXiv:1704.04861), table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.mobilenet import (
    Classifier,
    check_multiplier,
    classify,
    explicit_padding,
    strides_and_rates,
    weights_initializer,
)

__all__ = ["mobilenet_v1"]

# Stride and channels: of a full convolution, then of thirteen separable ones.
_LAYERS = (
    (2, 32),
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    *[(1, 512)] * 5,
    (2, 1024),
    (1, 1024),
)
_POOL = 7  # The side of the last map of images of 224 x 224.


def mobilenet_v1(
    images: Any,
    build: Build,
    *,
    depth_multiplier: float = 1.0,
    min_depth: int = 8,
    output_stride: int | None = None,
    use_explicit_padding: bool = False,
    regularize_depthwise: bool = False,
    dropout_keep_prob: float = 0.999,
    global_pool: bool = False,
    spatial_squeeze: bool = True,
    prediction_fn: Callable[[Any], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Build MobileNet v1.

    Args:
        images: `[batch, height, width, channels]` floats, or channels first.
        build: how.
        depth_multiplier: factor of the channels of all layers.
        min_depth: fewest channels of a layer.
        output_stride: 8, 16 or 32: from there on rates in place of strides.
        use_explicit_padding: pads alike on all sides, where `SAME` pads an even image's strided convolution less
            before than after.
        regularize_depthwise: whether weights of depthwise convolutions have L2 losses, too.
        dropout_keep_prob: probability that a feature stays while training.
        global_pool: whether features are the mean of the whole map, whatever its size; else of 7 x 7 places at most.
        spatial_squeeze: whether logits are `[batch, classes]`, not `[batch, 1, 1, classes]`.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.

    Returns:
        Logits and end points; without classes, pooled features `[batch, 1, 1, channels]` and end points.

    Raises:
        UsageError: a wrong `depth_multiplier` or `output_stride`; or larger images than 7 x 7 places are for.
    """
    check_multiplier(depth_multiplier)
    plan = strides_and_rates((stride for stride, _ in _LAYERS), output_stride, (8, 16, 32))
    layers = build.layers(
        norm=build.norm(0.9997, 1e-3, scale=True),
        activation=tf.nn.relu6,
        initializer=weights_initializer(),
        padding="VALID" if use_explicit_padding else "SAME",
    )
    depthwise_weight_decay = build.weight_decay if regularize_depthwise else 0.0
    end_points: dict[str, Any] = {}
    net = images
    with layers.scope("MobilenetV1"):
        for index, ((stride, rate), (_, depth)) in enumerate(zip(plan, _LAYERS, strict=True)):
            depth = max(int(depth * depth_multiplier), min_depth)
            name = f"Conv2d_{index}"
            if use_explicit_padding:
                net = explicit_padding(layers, net, 3, rate)
            if index == 0:
                net = end_points[name] = layers.conv2d(net, depth, 3, name, stride=stride)
                continue
            net = end_points[f"{name}_depthwise"] = layers.separable_conv2d(
                net,
                None,
                3,
                f"{name}_depthwise",
                stride=stride,
                rate=rate,
                depthwise_weight_decay=depthwise_weight_decay,
            )
            net = end_points[f"{name}_pointwise"] = layers.conv2d(net, depth, 1, f"{name}_pointwise")
        net = _pool(layers, net, global_pool, end_points)
        if not build.num_classes:
            return net, end_points
        head = Classifier(build.num_classes, "Dropout_1b", dropout_keep_prob, spatial_squeeze, prediction_fn)
        return classify(layers, net, head, end_points), end_points


def _pool(layers: Layers, net: Any, everywhere: bool, end_points: dict[str, Any]) -> Any:
    with tf.name_scope("Logits"):
        if everywhere:
            end_points["global_pool"] = layers.global_pool(net, "global_pool")
            return end_points["global_pool"]
        kernel = [_POOL if side is None else min(side, _POOL) for side in layers.spatial(net)]
        end_points["AvgPool_1a"] = layers.avg_pool(net, kernel, "AvgPool_1a", padding="VALID")
        return end_points["AvgPool_1a"]
