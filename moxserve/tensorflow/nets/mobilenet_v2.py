"""MobileNet v2: inverted residuals, which widen, convolve each channel, and narrow without an activation.

MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), table 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.mobilenet import (
    Classifier,
    check_multiplier,
    classify,
    divisible,
    explicit_padding,
    strides_and_rates,
    weights_initializer,
)

__all__ = ["mobilenet_v2"]

_FIRST = 32  # Channels of the first convolution, of stride 2,
_LAST = 1280  # and of the last one.
# Factor of the widening, channels, repetitions, stride of the first: as the paper's table has them.
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_UNITS = tuple(
    (factor, depth, stride if index == 0 else 1) for factor, depth, count, stride in _BLOCKS for index in range(count)
)


@dataclass(frozen=True)
class _Unit:
    """One inverted residual: its name, width, and how the depthwise convolution strides."""

    name: str
    factor: int
    depth: int
    stride: int
    rate: int
    padded: bool


def mobilenet_v2(
    images: Any,
    build: Build,
    *,
    depth_multiplier: float = 1.0,
    min_depth: int = 8,
    divisible_by: int = 8,
    finegrain_classification_mode: bool = False,
    output_stride: int | None = None,
    use_explicit_padding: bool = False,
    activation_fn: Callable[[Any], Any] = tf.nn.relu6,
    dropout_keep_prob: float = 0.8,
    spatial_squeeze: bool = True,
    prediction_fn: Callable[[Any], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Build MobileNet v2.

    Args:
        images: `[batch, height, width, channels]` floats, or channels first.
        build: how.
        depth_multiplier: factor of the channels of all layers.
        min_depth: fewest channels of a layer.
        divisible_by: what numbers of channels are rounded to multiples of.
        finegrain_classification_mode: whether a multiplier below 1 leaves the last convolution as wide as it is.
        output_stride: 1, 2, 4, 8, 16 or 32: from there on rates in place of strides.
        use_explicit_padding: pads alike on all sides, where `SAME` pads an even image's strided convolution less
            before than after.
        activation_fn: of all layers that have one.
        dropout_keep_prob: probability that a feature stays while training.
        spatial_squeeze: whether logits are `[batch, classes]`, not `[batch, 1, 1, classes]`.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.

    Returns:
        Logits and end points; without classes, pooled features `[batch, 1, 1, channels]` and end points.

    Raises:
        UsageError: a wrong `depth_multiplier` or `output_stride`.
    """
    check_multiplier(depth_multiplier)
    strides = (2, *(stride for *_, stride in _UNITS))
    (first_stride, first_rate), *plan = strides_and_rates(strides, output_stride, (1, 2, 4, 8, 16, 32))
    last = _LAST if finegrain_classification_mode and depth_multiplier < 1 else _LAST * depth_multiplier
    layers = build.layers(
        norm=build.norm(0.997, 1e-3, scale=True),
        activation=activation_fn,
        initializer=weights_initializer(),
        padding="VALID" if use_explicit_padding else "SAME",
    )
    end_points: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    net = images
    with layers.scope("MobilenetV2"):
        if use_explicit_padding:
            net = explicit_padding(layers, net, 3, first_rate)
        first = divisible(_FIRST * depth_multiplier, divisible_by, min_depth)
        net = end_points["layer_1"] = layers.conv2d(net, first, 3, "Conv", stride=first_stride, rate=first_rate)
        for index, ((factor, depth, _), (stride, rate)) in enumerate(zip(_UNITS, plan, strict=True)):
            depth = divisible(depth * depth_multiplier, divisible_by, min_depth)
            name = f"expanded_conv_{index}" if index else "expanded_conv"
            unit = _Unit(name, factor, depth, stride, rate, use_explicit_padding)
            outputs = _inverted_residual(layers, net, unit)
            net = end_points[f"layer_{index + 2}"] = outputs["output"]
            inner |= {f"layer_{index + 2}/{key}": value for key, value in outputs.items()}
        net = layers.conv2d(net, divisible(last, divisible_by, min_depth), 1, "Conv_1")
        end_points |= {f"layer_{len(_UNITS) + 2}": net, **inner}
        with tf.name_scope("Logits"):
            net = end_points["global_pool"] = layers.global_pool(net, "global_pool")
        if not build.num_classes:
            return net, end_points
        head = Classifier(build.num_classes, "Dropout", dropout_keep_prob, spatial_squeeze, prediction_fn)
        return classify(layers, net, head, end_points), end_points


def _inverted_residual(layers: Layers, net: Any, unit: _Unit) -> dict[str, Any]:
    """Return the outputs of the widening (if there is one), of the depthwise convolution, and of the whole."""
    outputs, given = {}, net
    depth = layers.channels(net)
    # A factor of 1 widens nothing; others are rounded to multiples of 8, whatever the multiplier's divisor is.
    wide = depth if unit.factor == 1 else divisible(depth * unit.factor, 8, 8)
    with layers.scope(unit.name):
        if wide > depth:
            net = outputs["expansion_output"] = layers.conv2d(net, wide, 1, "expand")
        if unit.padded:
            net = explicit_padding(layers, net, 3, unit.rate)
        net = outputs["depthwise_output"] = layers.separable_conv2d(
            net, None, 3, "depthwise", stride=unit.stride, rate=unit.rate
        )
        net = layers.conv2d(net, unit.depth, 1, "project", activation=None)
        if unit.stride == 1 and unit.depth == depth:
            net = net + given
        outputs["output"] = net
    return outputs
