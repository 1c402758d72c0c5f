"""PNASNet-5 in two sizes for ImageNet: cells of one kind, of which some halve the map.

Progressive neural architecture search (Liu et al. 2017, arXiv:1712.00559).
"""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.nasnet_cells import PNASNET, Place
from moxserve.tensorflow.nets.nasnet_trunk import NasnetOptions, Trunk

__all__ = ["OPTIONS", "pnasnet_large", "pnasnet_mobile"]

_MOBILE = NasnetOptions(num_cells=9, num_conv_filters=54, stem_multiplier=1.0, skip_reduction_layer_input=True)
_LARGE = NasnetOptions(num_cells=12, num_conv_filters=216, skip_reduction_layer_input=True, drop_path_keep_prob=0.6)
# What `**options` of each function are, and their defaults.
OPTIONS = {"pnasnet_mobile": _MOBILE, "pnasnet_large": _LARGE}


def pnasnet_mobile(images: Any, build: Build, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Build PNASNet-5 of 5 million parameters, for images of 224 x 224.

    Args:
        images: `[batch, height, width, channels]` floats, or channels first.
        build: how.
        **options: those of `NasnetOptions`.

    Returns:
        Logits and end points; without classes, pooled features `[batch, channels]` and end points.

    Raises:
        UsageError: an unknown option or a wrong value; or images too small for the second classifier.
    """
    return _pnasnet(images, build, _MOBILE.changed(options))


def pnasnet_large(images: Any, build: Build, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Build PNASNet-5 of 86 million parameters, for images of 331 x 331; otherwise as `pnasnet_mobile`."""
    return _pnasnet(images, build, _LARGE.changed(options))


def _pnasnet(images: Any, build: Build, options: NasnetOptions) -> tuple[Any, dict[str, Any]]:
    adjacent = any(cell + 1 in options.reductions for cell in options.reductions)
    if adjacent and not options.skip_reduction_layer_input:
        raise UsageError(
            f"{options.num_cells} cells, of which {options.num_reduction_layers} halve the map, have no cell between "
            "two of those, which skip_reduction_layer_input=False needs; raise num_cells, or leave it True"
        )
    trunk = Trunk(build, options, extra_cells=2)
    outputs = trunk.imagenet_stem(images, PNASNET)
    previous, scaling = outputs[-2], 1.0
    for cell in range(options.num_cells):
        halves = cell in options.reductions
        if halves:
            scaling *= options.filter_scaling_rate
        if options.skip_reduction_layer_input or not halves:
            previous = outputs[-2]
        place = Place(f"cell_{cell}", cell + 2, scaling, stride=2 if halves else 1)
        outputs.append(trunk.cells.build(PNASNET, outputs[-1], previous, place))
        trunk.end_points[f"Cell_{cell}"] = outputs[-1]
        trunk.aux_head(outputs[-1], cell)
    return trunk.classifier(outputs[-1])
