"""ResNet v2: units that normalise and rectify before each convolution, and leave their sum as it is.

He et al., Identity mappings in deep residual networks, 2016, arXiv:1603.05027. Variables and end points are those of
slim's networks: the first convolution, projections and each unit's last convolution have biases and no batch norm;
a batch norm follows the last unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets import residual
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.residual import Options, Unit

__all__ = ["resnet_v2"]


def resnet_v2(
    images: Any,
    build: Build,
    *,
    scope: str,
    units: Sequence[int],
    global_pool: bool = True,
    output_stride: int | None = None,
    spatial_squeeze: bool = True,
    official: bool = False,
    keras: bool = False,
    weights_initializer_params: Mapping[str, Any] | None = None,
    batch_norm_decay: float = 0.997,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_scale: bool = True,
    depth_multiplier: float = 1.0,
    min_base_depth: int = 8,
) -> tuple[Any, dict[str, Any]]:
    """Build a network; `residual.Options` tells the options.

    Args:
        images: `[batch, height, width, channels] float`, or channels first as `build.data_format` says; of any size.
        build: how it is built.
        scope: variable scope.
        units: how many residual units each of the four blocks has.
        global_pool: whether the classifier reads the mean of the map.
        output_stride: 4, 8, 16 or 32: how much smaller than the images the last map is.
        spatial_squeeze: whether logits are a vector an image.
        official: whether the first units of blocks 2 to 4 stride; slim's: the last ones of blocks 1 to 3.
        keras: pools as Keras' application of that name, for weights converted from it.
        weights_initializer_params: of the variance scaling initializer of weights.
        batch_norm_decay: decay of the moving averages.
        batch_norm_epsilon: what is added to variances.
        batch_norm_scale: whether batch norms have a gamma.
        depth_multiplier: factor of the channels of all units.
        min_base_depth: the fewest channels between a unit's convolutions.

    Returns:
        Logits `[batch, classes]` and the end points.

    Raises:
        UsageError: an option's value cannot be built.
    """
    options = Options(
        global_pool=global_pool,
        output_stride=output_stride,
        spatial_squeeze=spatial_squeeze,
        official=official,
        keras=keras,
        weights_initializer_params=weights_initializer_params,
        batch_norm_decay=batch_norm_decay,
        batch_norm_epsilon=batch_norm_epsilon,
        batch_norm_scale=batch_norm_scale,
    )
    layers = residual.residual_layers(build, options)
    blocks = residual.plan(units, widths=residual.widths(depth_multiplier, min_base_depth), first_strides=official)
    with layers.scope(scope):
        net = residual.root(layers, images, zero_padded=keras, activation=None, norm=None)
        net = residual.stack(layers, net, blocks, _bottleneck, output_stride=output_stride)
        net = layers.batch_norm(net, "postnorm", activation=tf.nn.relu)
        return residual.classify(layers, net, build, options)


def _bottleneck(layers: Layers, net: Any, unit: Unit) -> Any:
    """Build a unit of 1x1, 3x3 and 1x1 convolutions (figure 4e); a projection reads what the first one reads."""
    with residual.unit_scope(layers, "bottleneck_v2") as record:
        active = layers.batch_norm(net, "preact", activation=tf.nn.relu)
        shortcut = residual.shortcut(layers, net, unit, projected=active, norm=None)
        net = layers.conv2d(active, unit.width, 1, "conv1")
        net = layers.conv2d_same(net, unit.width, 3, "conv2", stride=unit.stride, rate=unit.rate)
        net = layers.conv2d(net, unit.depth, 1, "conv3", activation=None, norm=None)
        return record(shortcut + net)
