"""NASNet-A, for CIFAR-10 and in two sizes for ImageNet: normal cells, and reduction cells between them.

Learning transferable architectures for scalable image recognition (Zoph et al. 2017, arXiv:1707.07012).
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.nasnet_cells import NASNET_NORMAL, NASNET_REDUCTION, Place
from moxserve.tensorflow.nets.nasnet_trunk import NasnetOptions, Trunk

__all__ = ["OPTIONS", "nasnet_cifar", "nasnet_large", "nasnet_mobile"]

_CIFAR = NasnetOptions(
    num_cells=18,
    num_conv_filters=32,
    drop_path_keep_prob=0.6,
    total_training_steps=937_500,  # 600 epochs of 50,000 images, in batches of 32
    dense_dropout_keep_prob=1.0,
    batch_norm_decay=0.9,
    batch_norm_epsilon=1e-5,
)
_MOBILE = NasnetOptions(num_cells=12, num_conv_filters=44, stem_multiplier=1.0)
_LARGE = NasnetOptions(num_cells=18, num_conv_filters=168, skip_reduction_layer_input=True, drop_path_keep_prob=0.7)
# What `**options` of each function are, and their defaults.
OPTIONS = {"nasnet_cifar": _CIFAR, "nasnet_mobile": _MOBILE, "nasnet_large": _LARGE}


def nasnet_cifar(images: Any, build: Build, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Build NASNet-A (6 @ 768), for images of 32 x 32.

    Args:
        images: `[batch, height, width, channels]` floats, or channels first.
        build: how.
        **options: those of `NasnetOptions`.

    Returns:
        Logits and end points; without classes, pooled features `[batch, channels]` and end points.

    Raises:
        UsageError: an unknown option or a wrong value; or images too small for the second classifier.
    """
    chosen = _CIFAR.changed(options)
    trunk = Trunk(build, chosen, extra_cells=chosen.num_reduction_layers)
    return _cells(trunk, trunk.cifar_stem(images), first=0)


def nasnet_mobile(images: Any, build: Build, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Build NASNet-A (4 @ 1056), for images of 224 x 224; otherwise as `nasnet_cifar`."""
    return _imagenet(images, build, _MOBILE.changed(options))


def nasnet_large(images: Any, build: Build, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Build NASNet-A (6 @ 4032), for images of 331 x 331; otherwise as `nasnet_cifar`."""
    return _imagenet(images, build, _LARGE.changed(options))


def _imagenet(images: Any, build: Build, options: NasnetOptions) -> tuple[Any, dict[str, Any]]:
    trunk = Trunk(build, options, extra_cells=options.num_reduction_layers + 2)
    return _cells(trunk, trunk.imagenet_stem(images, NASNET_REDUCTION), first=2)


def _cells(trunk: Trunk, outputs: list[Any], first: int) -> tuple[Any, dict[str, Any]]:
    """Build the cells and the classifier on a stem's outputs; `first` is the number of the first cell."""
    options, number, scaling = trunk.options, first, 1.0
    for cell in range(options.num_cells):
        previous = outputs[-2]
        if cell in options.reductions:
            name = f"{options.reductions.index(cell)}"
            scaling *= options.filter_scaling_rate
            place = Place(f"reduction_cell_{name}", number, scaling, stride=2)
            outputs.append(trunk.cells.build(NASNET_REDUCTION, outputs[-1], previous, place))
            trunk.end_points[f"Reduction_Cell_{name}"] = outputs[-1]
            number += 1
            if not options.skip_reduction_layer_input:
                previous = outputs[-2]
        outputs.append(trunk.cells.build(NASNET_NORMAL, outputs[-1], previous, Place(f"cell_{cell}", number, scaling)))
        trunk.end_points[f"Cell_{cell}"] = outputs[-1]
        number += 1
        trunk.aux_head(outputs[-1], cell)
    return trunk.classifier(outputs[-1])
