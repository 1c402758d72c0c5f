"""VGG: Very deep convolutional networks for large-scale image recognition (Simonyan, Zisserman 2014, arXiv:1409.1556).

Configurations A, D (16) and E (19) of the paper's table 1, and each with batch norms after the convolutions, which
slim does not have.
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.heads import DenseHead, check_choice, check_size, dense_head

__all__ = ["vgg"]

_FILTERS = (64, 128, 256, 512, 512)
_HALVED = 2 ** len(_FILTERS)  # how much smaller the last map is than the image
_FC6 = 7


def vgg(
    images: Any,
    build: Build,
    *,
    scope: str,
    convolutions: tuple[int, ...],
    batch_norm: bool,
    dropout_keep_prob: float = 0.5,
    spatial_squeeze: bool = True,
    global_pool: bool = False,
    fc_conv_padding: str = "VALID",
) -> tuple[Any, dict[str, Any]]:
    """Build a VGG: five stages of convolutions 3x3 and a pool, and three dense layers as convolutions.

    Args:
        images: `[batch, height, width, channels]`, of 224x224x3 by default, which is the smallest size; 32x32 with
            `fc_conv_padding="SAME"`. From 256 on (64 with `SAME`) logits are a map.
        build: how.
        scope: of the variables.
        convolutions: how many in each stage.
        batch_norm: whether each 3x3 convolution is followed by a batch norm, and has no biases then; the dense layers
            are not (like torchvision's). Its decay and epsilon are those of slim's ResNets: VGG's are nobody's.
        dropout_keep_prob: probability that a unit of fc6 and fc7 stays while training.
        spatial_squeeze: False gives the logits as a map `[batch, height, width, classes]`.
        global_pool: whether the classifier reads the mean of fc7's map.
        fc_conv_padding: of fc6: `VALID`, or `SAME` for a map of a 32nd of the image.

    Returns:
        Logits `[batch, classes]`, without classes fc7's output; and the end points.

    Raises:
        UsageError: images are too small, or so large that logits are a map that shall be squeezed.
    """
    padding = check_choice("fc_conv_padding", fc_conv_padding, ("VALID", "SAME"))
    layers = build.layers(collect=frozenset({"conv2d", "max_pool"}))
    check_size(layers, images, scope, _HALVED * _FC6 if padding == "VALID" else _HALVED)
    norm = build.norm(0.997, 1e-5, scale=True) if batch_norm else None
    net = images
    with layers.scope(scope):
        for stage, (count, filters) in enumerate(zip(convolutions, _FILTERS, strict=True), start=1):
            with layers.scope(f"conv{stage}"):
                for i in range(1, count + 1):
                    net = layers.conv2d(net, filters, 3, f"conv{stage}_{i}", norm=norm)
            net = layers.max_pool(net, 2, f"pool{stage}")
        head = DenseHead(
            _FC6, (4096, 4096), build.num_classes, dropout_keep_prob, spatial_squeeze, global_pool, padding
        )
        logits = dense_head(layers, net, head)
    return logits, layers.end_points or {}
