"""Inception v4: "Inception-v4, Inception-ResNet and the impact of residual connections on learning"
(Szegedy et al. 2016, arXiv:1602.07261), figures 3 to 9.
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.inception_heads import aux_dense, classify_dense, require_size
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
)

__all__ = ["inception_v4"]

_INCEPTION_A: Module = (  # figure 4
    (conv(96),),
    (conv(64), conv(96, 3)),
    (conv(64), conv(96, 3), conv(96, 3)),
    (avg_pool(3), conv(96)),
)
_REDUCTION_A: Module = (  # figure 7
    (conv(384, 3, stride=2, padding="VALID"),),
    (conv(192), conv(224, 3), conv(256, 3, stride=2, padding="VALID")),
    (max_pool(3, stride=2, padding="VALID"),),
)
_INCEPTION_B: Module = (  # figure 5
    (conv(384),),
    (conv(192), conv(224, 1, 7), conv(256, 7, 1)),
    (conv(192), conv(192, 7, 1), conv(224, 1, 7), conv(224, 7, 1), conv(256, 1, 7)),
    (avg_pool(3), conv(128)),
)
_REDUCTION_B: Module = (  # figure 8
    (conv(192), conv(192, 3, stride=2, padding="VALID")),
    (conv(256), conv(256, 1, 7), conv(320, 7, 1), conv(320, 3, stride=2, padding="VALID")),
    (max_pool(3, stride=2, padding="VALID"),),
)
_INCEPTION_C: Module = (  # figure 6
    (conv(256),),
    (conv(384), fork(conv(256, 1, 3), conv(256, 3, 1))),
    (conv(384), conv(448, 3, 1), conv(512, 1, 3), fork(conv(256, 1, 3), conv(256, 3, 1))),
    (avg_pool(3), conv(256)),
)
_STEM: Rows = {  # figure 3
    "Conv2d_1a_3x3": conv(32, 3, stride=2, padding="VALID"),
    "Conv2d_2a_3x3": conv(32, 3, padding="VALID"),
    "Conv2d_2b_3x3": conv(64, 3),
    "Mixed_3a": (
        (max_pool(3, stride=2, padding="VALID", name="MaxPool_0a_3x3"),),
        (conv(96, 3, stride=2, padding="VALID", name="Conv2d_0a_3x3"),),
    ),
    "Mixed_4a": (
        (conv(64), conv(96, 3, padding="VALID")),
        (conv(64), conv(64, 1, 7), conv(64, 7, 1), conv(96, 3, padding="VALID")),
    ),
    "Mixed_5a": (
        (conv(192, 3, stride=2, padding="VALID"),),
        (max_pool(3, stride=2, padding="VALID"),),
    ),
}
_STAGES: Rows = {
    **_STEM,
    **{f"Mixed_5{letter}": _INCEPTION_A for letter in "bcde"},
    "Mixed_6a": _REDUCTION_A,
    **{f"Mixed_6{letter}": _INCEPTION_B for letter in "bcdefgh"},
    "Mixed_7a": _REDUCTION_B,
    **{f"Mixed_7{letter}": _INCEPTION_C for letter in "bcd"},
}
_AUX_NAMES = ("AvgPool_1a_5x5", "Conv2d_1b_1x1", "Conv2d_2a", "Aux_logits")


def inception_v4(
    images: Any, build: Build, *, dropout_keep_prob: float = 0.8, create_aux_logits: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Build Inception v4.

    Args:
        images: `[batch, height, width, channels]` floats, or NCHW as `build` says; made for 299x299x3, of 75x75 or
            more, with the auxiliary classifier of 107x107 or more. Weights of the auxiliary classifier fit one size.
        build: how it is built.
        dropout_keep_prob: share of the features that dropout keeps in training.
        create_aux_logits: whether there is an auxiliary classifier, the end point `AuxLogits`, where there are classes.

    Returns:
        The logits, or the means under them where `build` has no classes; and the end points by name.

    Raises:
        UsageError: images are too small.
    """
    tower = Tower(inception_layers(build, initializer=he_normal()))
    aux = create_aux_logits and bool(build.num_classes)
    require_size(tower.layers, images, "inception_v4", aux)
    with tower.layers.scope("InceptionV4", [images]):
        x = tower.stages(images, _STAGES)
        if build.num_classes and aux:
            aux_dense(tower, tower.end_points["Mixed_6h"], build.num_classes, _AUX_NAMES)
        logits = classify_dense(tower, x, build.num_classes, dropout_keep_prob, "Dropout_1b")
    return logits, tower.end_points
