"""Inception v2: "Batch normalization" (Ioffe, Szegedy 2015, arXiv:1502.03167), figure 5: 3x3 twice in place of 5x5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.inception_heads import Finish, HeadOptions, classify
from moxserve.tensorflow.nets.inception_parts import (
    Module,
    Pool,
    Rows,
    Tower,
    avg_pool,
    conv,
    he_normal,
    inception_layers,
    max_pool,
    normal,
    scaled_depth,
)

__all__ = ["inception_v2"]

_FIRST = "Conv2d_1a_7x7"
_MEAN = avg_pool(3)
# Standard deviations that the weights of 1x1 convolutions start from, before a 3x3 one and after a pool.
_REDUCE, _PROJECT = 0.09, 0.1


def _module(ones: int, threes: tuple[int, int], doubles: tuple[int, int], project: int, pool: Pool = _MEAN) -> Module:
    """Return a module: 1x1, 3x3 after its reduction, 3x3 twice after theirs, a pool and its projection."""
    return (
        (conv(ones),),
        (conv(threes[0], stddev=_REDUCE), conv(threes[1], 3)),
        (conv(doubles[0], stddev=_REDUCE), conv(doubles[1], 3), conv(doubles[1], 3)),
        (pool, conv(project, stddev=_PROJECT)),
    )


def _halving(threes: tuple[int, int], doubles: tuple[int, int]) -> Module:
    """Return a module that halves the sides of images: no 1x1, and no projection after the pool."""
    return (
        (conv(threes[0], stddev=_REDUCE), conv(threes[1], 3, stride=2)),
        (conv(doubles[0], stddev=_REDUCE), conv(doubles[1], 3), conv(doubles[1], 3, stride=2)),
        (max_pool(3, stride=2),),
    )


_STAGES: Rows = {
    "MaxPool_2a_3x3": max_pool(3, stride=2),
    "Conv2d_2b_1x1": conv(64, stddev=0.1),
    "Conv2d_2c_3x3": conv(192, 3),
    "MaxPool_3a_3x3": max_pool(3, stride=2),
    "Mixed_3b": _module(64, (64, 64), (64, 96), 32),
    "Mixed_3c": _module(64, (64, 96), (64, 96), 64),
    "Mixed_4a": _halving((128, 160), (64, 96)),
    "Mixed_4b": _module(224, (64, 96), (96, 128), 128),
    "Mixed_4c": _module(192, (96, 128), (96, 128), 128),
    "Mixed_4d": _module(160, (128, 160), (128, 160), 96),
    "Mixed_4e": _module(96, (128, 192), (160, 192), 96),
    "Mixed_5a": _halving((128, 192), (192, 256)),
    "Mixed_5b": _module(352, (192, 320), (160, 224), 128),
    "Mixed_5c": _module(352, (192, 320), (192, 224), 128, max_pool(3)),
}
_FINISH = Finish(window=7, stride=2, end_point="AvgPool_1a", digit=1)


def inception_v2(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.8,
    min_depth: int = 16,
    depth_multiplier: float = 1.0,
    use_separable_conv: bool = True,
    prediction_fn: Callable[[Any], Any] | None = None,
    spatial_squeeze: bool = True,
    global_pool: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Build Inception v2.

    Args:
        images: `[batch, height, width, channels]` floats, or NCHW as `build` says; made for 224x224x3, of any size.
        build: how it is built.
        dropout_keep_prob: share of the features that dropout keeps in training.
        min_depth: fewest filters that a layer has when `depth_multiplier` is below 1.
        depth_multiplier: factor of the filters of all layers.
        use_separable_conv: whether the first convolution is a separable one, as in published checkpoints.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.
        spatial_squeeze: whether logits are `[batch, classes]`; otherwise `[batch, 1, 1, classes]`, and larger images
            have more places, which are averaged when squeezed.
        global_pool: whether the mean under the logits is over all places instead of over windows of 7x7.

    Returns:
        The logits, or the means under them where `build` has no classes; and the end points by name.

    Raises:
        UsageError: `depth_multiplier` or `min_depth` is out of range.
    """
    tower = Tower(inception_layers(build, initializer=he_normal()), scaled_depth(depth_multiplier, min_depth))
    options = HeadOptions(dropout_keep_prob, prediction_fn, spatial_squeeze, global_pool)
    with tower.layers.scope("InceptionV2", [images]):
        x = tower.end_points[_FIRST] = _first(tower, images, use_separable_conv)
        x = tower.stages(x, _STAGES)
        logits = classify(tower, x, build.num_classes, _FINISH, options)
    return logits, tower.end_points


def _first(tower: Tower, images: Any, separable: bool) -> Any:
    """Build the first convolution; slim's separable one has biases, no batch norm and no weight decay."""
    layers, filters = tower.layers, tower.depth(64)
    if not separable:
        return layers.conv2d(images, filters, 7, _FIRST, stride=2, initializer=normal(1.0))
    return layers.separable_conv2d(
        images,
        filters,
        7,
        _FIRST,
        # The second half must not have more inputs than outputs.
        depth_multiplier=max(1, min(filters // layers.channels(images), 8)),
        stride=2,
        norm=None,
        weight_decay=0.0,
        initializer=normal(1.0),
    )
