"""The residual networks of He et al. for images of 32x32: 6n + 2 layers, n = 3 and n = 18.

Deep residual learning for image recognition, 2015, arXiv:1512.03385, section 4.2: a 3x3 convolution of 16 filters;
three blocks of n units of two 3x3 convolutions, with 16, 32 and 64 channels; the mean of the map; the classifier. The
first unit of the second and of the third block strides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.nets import residual
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.residual import Options
from moxserve.tensorflow.nets.resnet_v1 import LiteBottleneck

__all__ = ["resnet_small"]

_WIDTHS = (16, 32, 64)


def resnet_small(
    images: Any,
    build: Build,
    *,
    scope: str,
    units: int,
    shortcut: str = "B",
    global_pool: bool = True,
    output_stride: int | None = None,
    spatial_squeeze: bool = True,
    weights_initializer_params: Mapping[str, Any] | None = None,
    batch_norm_decay: float = 0.997,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_scale: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Build a network; `residual.Options` tells the options.

    Args:
        images: `[batch, height, width, channels] float`, or channels first as `build.data_format` says; of any size.
        build: how it is built.
        scope: variable scope.
        units: how many residual units each of the three blocks has.
        shortcut: what a unit that changes the depth adds to: `A`, its input with channels of zeros, as the paper's
            networks for these images do; or `B`, a 1x1 convolution of it, as slim's networks do.
        global_pool: whether the classifier reads the mean of the map.
        output_stride: 1, 2 or 4: how much smaller than the images the last map is.
        spatial_squeeze: whether logits are a vector an image.
        weights_initializer_params: of the variance scaling initializer of weights.
        batch_norm_decay: decay of the moving averages.
        batch_norm_epsilon: what is added to variances.
        batch_norm_scale: whether batch norms have a gamma.

    Returns:
        Logits `[batch, classes]` and the end points.

    Raises:
        UsageError: an option's value cannot be built.
    """
    if shortcut not in ("A", "B"):
        raise UsageError(f"shortcut: expected 'A' (zeros) or 'B' (a convolution), got {shortcut!r}")
    options = Options(
        global_pool=global_pool,
        output_stride=output_stride,
        spatial_squeeze=spatial_squeeze,
        weights_initializer_params=weights_initializer_params,
        batch_norm_decay=batch_norm_decay,
        batch_norm_epsilon=batch_norm_epsilon,
        batch_norm_scale=batch_norm_scale,
    )
    layers = residual.residual_layers(build, options)
    blocks = residual.plan((units,) * len(_WIDTHS), widths=_WIDTHS, expansion=1, first_strides=True)
    unit = LiteBottleneck(first_strides=True, zero_padded=shortcut == "A")
    with layers.scope(scope):
        net = layers.conv2d(images, _WIDTHS[0], 3, "conv1")
        net = residual.stack(layers, net, blocks, unit, output_stride=output_stride, stride=1)
        return residual.classify(layers, net, build, options)
