"""Inception v3: "Rethinking the Inception architecture for computer vision" (Szegedy et al. 2015, arXiv:1512.00567).

Table 1 and figures 5 to 7: large kernels in factors, 5x5 as 3x3 twice or 7x7 as 1x7 and 7x1, wide modules at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.inception_heads import (
    Finish,
    HeadOptions,
    classify,
    fitted,
    require_size,
    squeezed,
)
from moxserve.tensorflow.nets.inception_parts import (
    Module,
    Rows,
    Tower,
    avg_pool,
    conv,
    fork,
    he_normal,
    inception_layers,
    max_pool,
    normal,
    scaled_depth,
)

__all__ = ["inception_v3"]


def _module_35(project: int, fives: tuple[str | None, str | None] = (None, None)) -> Module:
    """Return a module of 35x35 images (figure 5), whose 5x5 stayed; `fives` are names of its second branch."""
    return (
        (conv(64),),
        (conv(48, name=fives[0]), conv(64, 5, name=fives[1])),
        (conv(64), conv(96, 3), conv(96, 3)),
        (avg_pool(3), conv(project)),
    )


def _module_17(width: int) -> Module:
    """Return a module of 17x17 images (figure 6): 7x7 in factors once, and twice."""
    return (
        (conv(192),),
        (conv(width), conv(width, 1, 7), conv(192, 7, 1)),
        (conv(width), conv(width, 7, 1), conv(width, 1, 7), conv(width, 7, 1), conv(192, 1, 7)),
        (avg_pool(3), conv(192)),
    )


def _module_8(tall: str | None = None) -> Module:
    """Return a module of 8x8 images (figure 7): wide; `tall` is the name of the first 3x1."""
    return (
        (conv(320),),
        (conv(384), fork(conv(384, 1, 3), conv(384, 3, 1, name=tall))),
        (conv(448), conv(384, 3), fork(conv(384, 1, 3), conv(384, 3, 1))),
        (avg_pool(3), conv(192)),
    )


# Names given here are slips of slim's, which its checkpoints have.
_TO_17: Module = (
    (conv(384, 3, stride=2, padding="VALID", name="Conv2d_1a_1x1"),),
    (conv(64), conv(96, 3), conv(96, 3, stride=2, padding="VALID", name="Conv2d_1a_1x1")),
    (max_pool(3, stride=2, padding="VALID"),),
)
_TO_8: Module = (
    (conv(192), conv(320, 3, stride=2, padding="VALID")),
    (conv(192), conv(192, 1, 7), conv(192, 7, 1), conv(192, 3, stride=2, padding="VALID")),
    (max_pool(3, stride=2, padding="VALID"),),
)
_STAGES: Rows = {
    "Conv2d_1a_3x3": conv(32, 3, stride=2, padding="VALID"),
    "Conv2d_2a_3x3": conv(32, 3, padding="VALID"),
    "Conv2d_2b_3x3": conv(64, 3),
    "MaxPool_3a_3x3": max_pool(3, stride=2, padding="VALID"),
    "Conv2d_3b_1x1": conv(80),
    "Conv2d_4a_3x3": conv(192, 3, padding="VALID"),
    "MaxPool_5a_3x3": max_pool(3, stride=2, padding="VALID"),
    "Mixed_5b": _module_35(32),
    "Mixed_5c": _module_35(64, fives=("Conv2d_0b_1x1", "Conv_1_0c_5x5")),
    "Mixed_5d": _module_35(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _module_17(128),
    "Mixed_6c": _module_17(160),
    "Mixed_6d": _module_17(160),
    "Mixed_6e": _module_17(192),
    "Mixed_7a": _TO_8,
    "Mixed_7b": _module_8(tall="Conv2d_0b_3x1"),
    "Mixed_7c": _module_8(),
}
_FINISH = Finish(window=8, stride=2, end_point="AvgPool_1a", digit=1, pre_logits=True)


def inception_v3(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.8,
    min_depth: int = 16,
    depth_multiplier: float = 1.0,
    create_aux_logits: bool = True,
    prediction_fn: Callable[[Any], Any] | None = None,
    spatial_squeeze: bool = True,
    global_pool: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Build Inception v3.

    Args:
        images: `[batch, height, width, channels]` floats, or NCHW as `build` says; made for 299x299x3, of 75x75 or
            more, with the auxiliary classifier of 107x107 or more.
        build: how it is built.
        dropout_keep_prob: share of the features that dropout keeps in training.
        min_depth: fewest filters that a layer has when `depth_multiplier` is below 1.
        depth_multiplier: factor of the filters of all layers.
        create_aux_logits: whether there is an auxiliary classifier, the end point `AuxLogits`, where there are classes.
        prediction_fn: from logits to the end point `Predictions`; None for the softmax over classes.
        spatial_squeeze: whether logits are `[batch, classes]`; otherwise `[batch, 1, 1, classes]`, and larger images
            have more places, which are averaged when squeezed.
        global_pool: whether the mean under the logits is over all places instead of over windows of 8x8.

    Returns:
        The logits, or the means under them where `build` has no classes; and the end points by name.

    Raises:
        UsageError: images are too small; `depth_multiplier` or `min_depth` is out of range.
    """
    tower = Tower(inception_layers(build, initializer=he_normal()), scaled_depth(depth_multiplier, min_depth))
    aux = create_aux_logits and bool(build.num_classes)
    require_size(tower.layers, images, "inception_v3", aux)
    options = HeadOptions(dropout_keep_prob, prediction_fn, spatial_squeeze, global_pool)
    with tower.layers.scope("InceptionV3", [images]):
        x = tower.stages(images, _STAGES)
        if build.num_classes and aux:
            tower.end_points["AuxLogits"] = _aux_logits(tower, build.num_classes, spatial_squeeze)
        logits = classify(tower, x, build.num_classes, _FINISH, options)
    return logits, tower.end_points


def _aux_logits(tower: Tower, num_classes: int, squeeze: bool) -> Any:
    """Build the auxiliary classifier of the last 17x17 images (figure 8)."""
    layers = tower.layers
    with layers.scope("AuxLogits"):
        x = layers.avg_pool(tower.end_points["Mixed_6e"], 5, "AvgPool_1a_5x5", stride=3)
        x = layers.conv2d(x, tower.depth(128), 1, "Conv2d_1b_1x1")
        height, width = fitted(layers, x, 5)
        name = f"Conv2d_2a_{height}x{width}"
        x = layers.conv2d(x, tower.depth(768), (height, width), name, padding="VALID", initializer=normal(0.01))
        logits = layers.conv2d(
            x, num_classes, 1, "Conv2d_2b_1x1", activation=None, norm=None, initializer=normal(0.001)
        )
        return squeezed(layers, logits) if squeeze else logits
