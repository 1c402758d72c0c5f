"""What both MobileNets are made of: widths by a multiplier, rates for strides, explicit padding, the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers

__all__ = ["Classifier", "classify", "divisible", "explicit_padding", "strides_and_rates", "weights_initializer"]

# Of all convolutions of both networks.
_STDDEV = 0.09


def weights_initializer() -> Any:
    """Return the initializer of all weights, a truncated normal of standard deviation 0.09."""
    return tf1.truncated_normal_initializer(stddev=_STDDEV)


def divisible(width: float, divisor: int, minimum: int) -> int:
    """Round a number of channels to the nearest multiple of `divisor`, but never down by more than a tenth.

    Args:
        width: channels wanted.
        divisor: what the result is a multiple of.
        minimum: what it is at least.

    Raises:
        UsageError: the divisor is below 1.
    """
    if divisor < 1:
        raise UsageError(f"divisible_by must be at least 1, got {divisor}")
    rounded = max(minimum, int(width + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * width else rounded)


def check_multiplier(depth_multiplier: float) -> None:
    """Check the factor of the numbers of channels.

    Raises:
        UsageError: it is not above 0.
    """
    if depth_multiplier <= 0:
        raise UsageError(f"depth_multiplier must be above 0, got {depth_multiplier}")


def strides_and_rates(
    strides: Iterable[int], output_stride: int | None, allowed: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Keep the map from shrinking below a size: from there on strides become rates of dilated convolutions.

    Args:
        strides: of the layers, as the paper has them.
        output_stride: side of the images over side of the last map; None for the product of the strides.
        allowed: the values that `output_stride` may have.

    Returns:
        Stride and rate of each layer.

    Raises:
        UsageError: `output_stride` is none of `allowed`.
    """
    if output_stride is not None and output_stride not in allowed:
        raise UsageError(f"output_stride must be one of {', '.join(map(str, allowed))} or None, got {output_stride!r}")
    plan, current, rate = [], 1, 1
    for stride in strides:
        if current == output_stride:
            plan.append((1, rate))
            rate *= stride
        else:
            plan.append((stride, 1))
            current *= stride
    return plan


def explicit_padding(layers: Layers, images: Any, kernel: int, rate: int = 1) -> Any:
    """Pad as `SAME` would at stride 1, whatever the stride is: half before, half after (for a `VALID` convolution)."""
    total = (kernel - 1) * rate
    before = total // 2
    return layers.pad(images, before, total - before, before, total - before) if total else images


@dataclass(frozen=True)
class Classifier:
    """The end of both networks.

    Attributes:
        num_classes: length of the logits.
        dropout: name of the dropout's scope.
        dropout_keep_prob: probability that a feature stays while training.
        spatial_squeeze: whether logits are `[batch, classes]`, not `[batch, 1, 1, classes]`.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.
    """

    num_classes: int
    dropout: str
    dropout_keep_prob: float
    spatial_squeeze: bool
    prediction_fn: Callable[[Any], Any] | None


def classify(layers: Layers, features: Any, head: Classifier, end_points: dict[str, Any]) -> Any:
    """Build the classifier: dropout, a 1x1 convolution, predictions.

    Args:
        layers: of the network.
        features: `[batch, height, width, channels]`, pooled.
        head: what is built.
        end_points: gain `Logits` and `Predictions`.

    Returns:
        The logits.

    Raises:
        UsageError: the features are a map of more than one place, and `spatial_squeeze` is wanted.
    """
    with layers.scope("Logits"):
        net = layers.dropout(features, head.dropout_keep_prob, head.dropout)
        net = layers.conv2d(net, head.num_classes, 1, "Conv2d_1c_1x1", activation=None, norm=None, padding="SAME")
        if head.spatial_squeeze:
            net = _squeeze(layers, net)
    end_points["Logits"] = net
    with tf1.name_scope("Predictions"):
        if head.prediction_fn is not None:
            end_points["Predictions"] = head.prediction_fn(net)
        else:  # Maps of logits may have their channels first.
            end_points["Predictions"] = tf.nn.softmax(net, -1 if head.spatial_squeeze else layers.channel_axis)
    return net


def _squeeze(layers: Layers, logits: Any) -> Any:
    if layers.spatial(logits) != (1, 1):
        raise UsageError(
            "the images are so large that there are logits for several places of each: a map of {} x {}; pass "
            "global_pool=True for the mean of all places, or spatial_squeeze=False for the map".format(
                *layers.spatial(logits)
            )
        )
    return tf.squeeze(logits, layers.spatial_axes, name="SpatialSqueeze")
