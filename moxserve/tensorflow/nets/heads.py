"""The end that AlexNet, OverFeat and VGG share: three dense layers, as convolutions, so that larger images give maps.

fc6 is as large as the map of an image of the default size, which so gives one vector. A larger image gives a map of
vectors: `global_pool` takes their mean before the classifier, `spatial_squeeze=False` leaves the map as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers

__all__ = ["DenseHead", "check_choice", "check_size", "classifier", "dense_head", "flattened"]


@dataclass(frozen=True)
class DenseHead:
    """What the three dense layers are.

    Attributes:
        kernel: side of fc6.
        units: of fc6 and fc7.
        num_classes: units of fc8; None leaves it away.
        dropout_keep_prob: probability that a unit of fc6 and fc7 stays while training.
        spatial_squeeze: whether logits are `[batch, classes]`, not `[batch, 1, 1, classes]`.
        global_pool: whether the classifier reads the mean of fc7's map.
        padding: of fc6: `VALID`, or `SAME` for a map as large as its input.
    """

    kernel: int
    units: tuple[int, int]
    num_classes: int | None
    dropout_keep_prob: float
    spatial_squeeze: bool
    global_pool: bool
    padding: str = "VALID"


def dense_head(layers: Layers, net: Any, head: DenseHead) -> Any:
    """Build fc6, fc7, the mean if it is wanted, and fc8.

    Args:
        layers: how; the end points gain `global_pool` and, squeezed if the logits are, fc8's.
        net: the map `[batch, height, width, channels]`, or with channels first.
        head: what.

    Returns:
        Logits `[batch, classes]`, or a map of them without `spatial_squeeze`; without classes the input of fc8.

    Raises:
        UsageError: the logits are a map that shall be squeezed.
    """
    net = layers.conv2d(net, head.units[0], head.kernel, "fc6", padding=head.padding)
    net = layers.dropout(net, head.dropout_keep_prob, "dropout6")
    net = layers.conv2d(net, head.units[1], 1, "fc7")
    if head.global_pool:
        net = layers.global_pool(net, "global_pool")
        if layers.end_points is not None:
            layers.end_points["global_pool"] = net
    if not head.num_classes:
        return net
    net = layers.dropout(net, head.dropout_keep_prob, "dropout7")
    return classifier(layers, net, head.num_classes, squeeze=head.spatial_squeeze)


def classifier(layers: Layers, net: Any, classes: int, *, squeeze: bool) -> Any:
    """Build fc8, and put its output, squeezed or not, under its name into the end points.

    Raises:
        UsageError: the logits are a map that shall be squeezed.
    """
    height, width = layers.spatial(net)
    if squeeze and (height, width) != (1, 1):
        raise UsageError(
            f"images of this size give a map of {height}x{width} logits, which cannot be squeezed to one vector",
            hint="give global_pool=True for the logits of the map's mean, or spatial_squeeze=False for the map",
        )
    fc8 = layers.replace(bias_initializer=tf1.zeros_initializer(), activation=None, norm=None)
    net = fc8.conv2d(net, classes, 1, "fc8")
    if squeeze:
        net = tf.squeeze(net, layers.spatial_axes, name="fc8/squeezed")
    if layers.end_points is not None:
        layers.end_points[f"{tf1.get_variable_scope().name}/fc8"] = net
    return net


def check_size(layers: Layers, images: Any, name: str, smallest: int) -> None:
    """Refuse images that some layer would have nothing left of.

    Raises:
        UsageError: a side is below the smallest, or not known while the graph is built.
    """
    height, width = layers.spatial(images) if images.shape.rank == 4 else (None, None)
    if height is None or width is None:
        raise UsageError(f"{name} expects a batch of images of known height and width, got shape {images.shape}")
    if min(height, width) < smallest:
        raise UsageError(f"{name} expects images of at least {smallest}x{smallest}, got {height}x{width}")


def flattened(layers: Layers, net: Any) -> Any:
    """Return images as rows in the order of channels last in both data formats, so that dense weights fit both."""
    return layers.flatten(tf.transpose(net, [0, 2, 3, 1]) if layers.data_format == "NCHW" else net)


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    """Return the value of an option.

    Raises:
        UsageError: it is none of the choices.
    """
    if value not in choices:
        raise UsageError(f"{option} is {value!r}; expected {' or '.join(map(repr, choices))}")
    return value
