"""ResNeXt: residual units whose 3x3 convolution has groups of channels that do not see each other.

Xie et al., Aggregated residual transformations for deep neural networks, 2016, arXiv:1611.05431. Form C (figure 3c)
has one grouped convolution. Form B (figure 3b) has a branch for each group, two convolutions with variables of their
own, in scopes `split_1` and so on. The forms are one function, and both are computed as form C is: see `branches`.

Weights start as in slim's other residual networks, by the number of inputs, which both forms agree on; the authors'
start by the number of outputs is `weights_initializer_params={"mode": "FAN_OUT"}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets import residual
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.branches import build_branches
from moxserve.tensorflow.nets.residual import Options, Unit

__all__ = ["resnext"]

# Channels of the first block's groups are counted as if it had 64 (the authors' baseWidth).
_REFERENCE = 64


def resnext(
    images: Any,
    build: Build,
    *,
    scope: str,
    units: Sequence[int],
    split: bool,
    cardinality: int = 32,
    base_width: int = 4,
    global_pool: bool = True,
    output_stride: int | None = None,
    spatial_squeeze: bool = True,
    official: bool = False,
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
        units: how many residual units each of the four blocks has.
        split: whether each group has variables of its own (form B), else all together (form C).
        cardinality: how many groups.
        base_width: channels of each group in the first block; twice as many in each block after.
        global_pool: whether the classifier reads the mean of the map.
        output_stride: 4, 8, 16 or 32: how much smaller than the images the last map is.
        spatial_squeeze: whether logits are a vector an image.
        official: whether the first units of blocks 2 to 4 stride; slim's: the last ones of blocks 1 to 3.
        weights_initializer_params: of the variance scaling initializer of weights.
        batch_norm_decay: decay of the moving averages.
        batch_norm_epsilon: what is added to variances.
        batch_norm_scale: whether batch norms have a gamma.

    Returns:
        Logits `[batch, classes]` and the end points.

    Raises:
        UsageError: an option's value cannot be built.
    """
    for name, value in (("cardinality", cardinality), ("base_width", base_width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}: expected a whole number above 0, got {value!r}")
    options = Options(
        global_pool=global_pool,
        output_stride=output_stride,
        spatial_squeeze=spatial_squeeze,
        official=official,
        weights_initializer_params=weights_initializer_params,
        batch_norm_decay=batch_norm_decay,
        batch_norm_epsilon=batch_norm_epsilon,
        batch_norm_scale=batch_norm_scale,
    )
    layers = residual.residual_layers(build, options)
    blocks = [
        [replace(unit, width=unit.width * base_width // _REFERENCE * cardinality) for unit in block]
        for block in residual.plan(units, first_strides=official)
    ]
    with layers.scope(scope):
        net = residual.root(layers, images)
        net = residual.stack(layers, net, blocks, _Aggregated(cardinality, split), output_stride=output_stride)
        return residual.classify(layers, net, build, options)


@dataclass(frozen=True)
class _Aggregated:
    """Builds units of a 1x1, a grouped 3x3 and a 1x1 convolution.

    Attributes:
        cardinality: how many groups.
        split: whether each has variables of its own.
    """

    cardinality: int
    split: bool

    def __call__(self, layers: Layers, net: Any, unit: Unit) -> Any:
        """Build one; the 3x3 convolution strides."""

        def groups(layers: Layers, net: Any) -> Any:
            net = layers.conv2d(net, unit.width, 1, "conv1")
            return layers.conv2d_same(
                net, unit.width, 3, "conv2", stride=unit.stride, rate=unit.rate, groups=self.cardinality
            )

        with residual.unit_scope(layers, "resnext_b" if self.split else "resnext_c") as record:
            shortcut = residual.shortcut(layers, net, unit)
            names = [f"split_{group}" for group in range(1, self.cardinality + 1)]
            net = build_branches(layers, names, groups, net) if self.split else groups(layers, net)
            net = layers.conv2d(net, unit.depth, 1, "conv3", activation=None)
            return record(tf.nn.relu(shortcut + net))
