"""ResNet v1: units whose convolutions are each followed by a batch norm, and whose sum is rectified.

He et al., Deep residual learning for image recognition, 2015, arXiv:1512.03385. Variables and end points are those of
slim's networks. Two are not slim's: `resnet_v1_18` has the paper's units of two 3x3 convolutions, with the names that
slim's DeepLab gives them; `resnet_v1_50_8k` is `resnet_v1_50` for batches of 8,192 images (Goyal et al., Accurate,
large minibatch SGD, 2017, arXiv:1706.02677): the last gamma of each unit starts at 0, and so units as identities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets import residual
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.residual import Options, Unit

__all__ = ["Bottleneck", "LiteBottleneck", "resnet_v1"]


def resnet_v1(
    images: Any,
    build: Build,
    *,
    scope: str,
    units: Sequence[int],
    bottleneck: bool,
    zero_gamma: bool,
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
        bottleneck: whether units have three convolutions, the outer ones 1x1; else two of 3x3.
        zero_gamma: whether the gammas of the units' last batch norms start at 0.
        global_pool: whether the classifier reads the mean of the map.
        output_stride: 4, 8, 16 or 32: how much smaller than the images the last map is.
        spatial_squeeze: whether logits are a vector an image.
        official: whether the first units of blocks 2 to 4 stride; slim's: the last ones of blocks 1 to 3.
        keras: pools and strides as Keras' application of that name, for weights converted from it.
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
    official = official or keras
    unit = Bottleneck(zero_gamma, keras) if bottleneck else LiteBottleneck(zero_gamma, official)
    blocks = residual.plan(
        units,
        widths=residual.widths(depth_multiplier, min_base_depth),
        expansion=4 if bottleneck else 1,
        first_strides=official,
    )
    with layers.scope(scope):
        net = residual.root(layers, images, zero_padded=keras)
        net = residual.stack(layers, net, blocks, unit, output_stride=output_stride)
        return residual.classify(layers, net, build, options)


@dataclass(frozen=True)
class Bottleneck:
    """Builds units of 1x1, 3x3 and 1x1 convolutions (figure 5, right).

    Attributes:
        zero_gamma: whether the last gamma starts at 0.
        first_strides: whether the first convolution strides, as in Keras; else the second.
    """

    zero_gamma: bool = False
    first_strides: bool = False

    def __call__(self, layers: Layers, net: Any, unit: Unit) -> Any:
        """Build one."""
        first, second = (unit.stride, 1) if self.first_strides else (1, unit.stride)
        rate = unit.rate_after if self.first_strides else unit.rate
        with residual.unit_scope(layers, "bottleneck_v1") as record:
            shortcut = residual.shortcut(layers, net, unit)
            net = layers.conv2d(net, unit.width, 1, "conv1", stride=first)
            net = layers.conv2d_same(net, unit.width, 3, "conv2", stride=second, rate=rate)
            norm = residual.last_norm(layers, self.zero_gamma)
            net = layers.conv2d(net, unit.depth, 1, "conv3", activation=None, norm=norm)
            return record(tf.nn.relu(shortcut + net))


@dataclass(frozen=True)
class LiteBottleneck:
    """Builds units of two 3x3 convolutions (figure 5, left).

    Attributes:
        zero_gamma: whether the last gamma starts at 0.
        first_strides: whether the first convolution strides, as in the paper; else the second, as in slim's DeepLab.
        zero_padded: whether more channels, where the depth changes, are zeros (option A); else a 1x1 convolution (B).
    """

    zero_gamma: bool = False
    first_strides: bool = False
    zero_padded: bool = False

    def __call__(self, layers: Layers, net: Any, unit: Unit) -> Any:
        """Build one."""
        first, second = (unit.stride, 1) if self.first_strides else (1, unit.stride)
        rate = unit.rate_after if self.first_strides else unit.rate
        with residual.unit_scope(layers, "lite_bottleneck_v1") as record:
            make_shortcut = residual.padded_shortcut if self.zero_padded else residual.shortcut
            shortcut = make_shortcut(layers, net, unit)
            net = layers.conv2d_same(net, unit.width, 3, "conv1", stride=first, rate=unit.rate)
            norm = residual.last_norm(layers, self.zero_gamma)
            net = layers.conv2d_same(net, unit.depth, 3, "conv2", stride=second, rate=rate, activation=None, norm=norm)
            return record(tf.nn.relu(shortcut + net))
