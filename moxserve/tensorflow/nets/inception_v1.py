"""Inception v1, GoogLeNet: "Going deeper with convolutions" (Szegedy et al. 2014, arXiv:1409.4842), table 1.

As slim has it: with batch norms, 3x3 where the paper has 5x5, no auxiliary classifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.inception_heads import Finish, HeadOptions, classify
from moxserve.tensorflow.nets.inception_parts import Module, Rows, Tower, conv, inception_layers, max_pool, normal

__all__ = ["inception_v1"]


def _module(ones: int, threes: tuple[int, int], fives: tuple[int, int], pool: int, name: str | None = None) -> Module:
    """Return a module of the table: "#1x1", "#3x3 reduce" and "#3x3", "#5x5 reduce" and "#5x5", "pool proj"."""
    return (
        (conv(ones),),
        (conv(threes[0]), conv(threes[1], 3)),
        (conv(fives[0]), conv(fives[1], 3, name=name)),
        (max_pool(3), conv(pool)),
    )


_STAGES: Rows = {
    "Conv2d_1a_7x7": conv(64, 7, stride=2),
    "MaxPool_2a_3x3": max_pool(3, stride=2),
    "Conv2d_2b_1x1": conv(64),
    "Conv2d_2c_3x3": conv(192, 3),
    "MaxPool_3a_3x3": max_pool(3, stride=2),
    "Mixed_3b": _module(64, (96, 128), (16, 32), 32),
    "Mixed_3c": _module(128, (128, 192), (32, 96), 64),
    "MaxPool_4a_3x3": max_pool(3, stride=2),
    "Mixed_4b": _module(192, (96, 208), (16, 48), 64),
    "Mixed_4c": _module(160, (112, 224), (24, 64), 64),
    "Mixed_4d": _module(128, (128, 256), (24, 64), 64),
    "Mixed_4e": _module(112, (144, 288), (32, 64), 64),
    "Mixed_4f": _module(256, (160, 320), (32, 128), 128),
    "MaxPool_5a_2x2": max_pool(2, stride=2),
    # A slip of slim's names, which its checkpoints have.
    "Mixed_5b": _module(256, (160, 320), (32, 128), 128, name="Conv2d_0a_3x3"),
    "Mixed_5c": _module(384, (192, 384), (48, 128), 128),
}
_FINISH = Finish(window=7, stride=1, end_point="AvgPool_0a_7x7", digit=0)


def inception_v1(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.8,
    prediction_fn: Callable[[Any], Any] | None = None,
    spatial_squeeze: bool = True,
    global_pool: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Build Inception v1.

    Args:
        images: `[batch, height, width, channels]` floats, or NCHW as `build` says; made for 224x224x3, of any size.
        build: how it is built.
        dropout_keep_prob: share of the features that dropout keeps in training.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.
        spatial_squeeze: whether logits are `[batch, classes]`; otherwise `[batch, 1, 1, classes]`, and larger images
            have more places, which are averaged when squeezed.
        global_pool: whether the mean under the logits is over all places instead of over windows of 7x7.

    Returns:
        The logits, or the means under them where `build` has no classes; and the end points by name.
    """
    tower = Tower(inception_layers(build, initializer=normal(0.01)))
    options = HeadOptions(dropout_keep_prob, prediction_fn, spatial_squeeze, global_pool)
    with tower.layers.scope("InceptionV1", [images]):
        x = tower.stages(images, _STAGES)
        logits = classify(tower, x, build.num_classes, _FINISH, options)
    return logits, tower.end_points
