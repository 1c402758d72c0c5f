"""Inception-ResNet v2: "Inception-v4, Inception-ResNet and the impact of residual connections on learning"
(Szegedy et al. 2016, arXiv:1602.07261), figures 15 to 19, with widths as slim has them.

Residual modules end in a 1x1 convolution without batch norm, whose result is added after scaling (section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.inception_heads import aux_dense, classify_dense, require_size
from moxserve.tensorflow.nets.inception_parts import (
    Module,
    Rows,
    Tower,
    avg_pool,
    conv,
    inception_layers,
    max_pool,
)

__all__ = ["inception_resnet_v2"]

Activation = Callable[[Any], Any]

_STEM: Rows = {
    "Conv2d_1a_3x3": conv(32, 3, stride=2, padding="VALID"),
    "Conv2d_2a_3x3": conv(32, 3, padding="VALID"),
    "Conv2d_2b_3x3": conv(64, 3),
    "MaxPool_3a_3x3": max_pool(3, stride=2, padding="VALID"),
    "Conv2d_3b_1x1": conv(80, padding="VALID"),
    "Conv2d_4a_3x3": conv(192, 3, padding="VALID"),
    "MaxPool_5a_3x3": max_pool(3, stride=2, padding="VALID"),
    "Mixed_5b": (
        (conv(96, name="Conv2d_1x1"),),
        (conv(48), conv(64, 5)),
        (conv(64), conv(96, 3), conv(96, 3)),
        (avg_pool(3), conv(64)),
    ),
}
_BLOCK_35: Module = (  # figure 16
    (conv(32, name="Conv2d_1x1"),),
    (conv(32), conv(32, 3)),
    (conv(32), conv(48, 3), conv(64, 3)),
)
_REDUCTION_A: Module = (  # figure 7
    (conv(384, 3, stride=2, padding="VALID"),),
    (conv(256), conv(256, 3), conv(384, 3, stride=2, padding="VALID")),
    (max_pool(3, stride=2, padding="VALID"),),
)
_BLOCK_17: Module = (  # figure 17
    (conv(192, name="Conv2d_1x1"),),
    (conv(128), conv(160, 1, 7), conv(192, 7, 1)),
)
_REDUCTION_B: Module = (  # figure 18
    (conv(256), conv(384, 3, stride=2, padding="VALID")),
    (conv(256), conv(288, 3, stride=2, padding="VALID")),
    (conv(256), conv(288, 3), conv(320, 3, stride=2, padding="VALID")),
    (max_pool(3, stride=2, padding="VALID"),),
)
_BLOCK_8: Module = (  # figure 19
    (conv(192, name="Conv2d_1x1"),),
    (conv(192), conv(224, 1, 3), conv(256, 3, 1)),
)
# The pool of the auxiliary classifier is named like a convolution in slim.
_AUX_NAMES = ("Conv2d_1a_3x3", "Conv2d_1b_1x1", "Conv2d_2a_5x5", "Logits")


def inception_resnet_v2(
    images: Any,
    build: Build,
    *,
    dropout_keep_prob: float = 0.8,
    create_aux_logits: bool = True,
    activation_fn: Activation | None = tf.nn.relu,
) -> tuple[Any, dict[str, Any]]:
    """Build Inception-ResNet v2.

    Args:
        images: `[batch, height, width, channels]` floats, or NCHW as `build` says; made for 299x299x3, of 75x75 or
            more, with the auxiliary classifier of 107x107 or more. Weights of the auxiliary classifier fit one size.
        build: how it is built. Its weight decay is also that of biases.
        dropout_keep_prob: share of the features that dropout keeps in training.
        create_aux_logits: whether there is an auxiliary classifier, the end point `AuxLogits`, where there are classes.
        activation_fn: of the sums of residual modules (other activations are ReLUs); None for none. With
            `tf.nn.relu6` what is added is also kept within -6 and 6.

    Returns:
        The logits, or the means under them where `build` has no classes; and the end points by name.

    Raises:
        UsageError: images are too small.
    """
    tower = Tower(inception_layers(build, bias_weight_decay=build.weight_decay))
    layers, ends = tower.layers, tower.end_points
    aux = create_aux_logits and bool(build.num_classes)
    require_size(layers, images, "inception_resnet_v2", aux)
    with layers.scope("InceptionResnetV2", [images]):
        x = tower.stages(images, _STEM)
        for number in range(1, 11):
            x = _residual(tower, x, _BLOCK_35, f"Repeat/block35_{number}", 0.17, activation_fn)
        x = tower.stages(x, {"Mixed_6a": _REDUCTION_A})
        for number in range(1, 21):
            x = _residual(tower, x, _BLOCK_17, f"Repeat_1/block17_{number}", 0.1, activation_fn)
        ends["PreAuxLogits"] = x
        x = tower.stages(x, {"Mixed_7a": _REDUCTION_B})
        for number in range(1, 10):
            x = _residual(tower, x, _BLOCK_8, f"Repeat_2/block8_{number}", 0.2, activation_fn)
        x = _residual(tower, x, _BLOCK_8, "Block8", 1.0, None)
        x = tower.stages(x, {"Conv2d_7b_1x1": conv(1536)})
        if build.num_classes and aux:
            aux_dense(tower, ends["PreAuxLogits"], build.num_classes, _AUX_NAMES)
        logits = classify_dense(tower, x, build.num_classes, dropout_keep_prob, "Dropout")
    return logits, ends


def _residual(tower: Tower, x: Any, branches: Module, name: str, scale: float, activation: Activation | None) -> Any:
    """Add to the images what the branches make of them, scaled."""
    layers = tower.layers
    with layers.scope(name):
        mixed = tower.branches(x, branches)
        change = scale * layers.conv2d(mixed, layers.channels(x), 1, "Conv2d_1x1", activation=None, norm=None)
        if activation is tf.nn.relu6:
            change = tf.clip_by_value(change, -6.0, 6.0)
        x = x + change
        return x if activation is None else activation(x)
