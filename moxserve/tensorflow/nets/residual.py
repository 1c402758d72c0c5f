"""What residual networks share: units in blocks, the strides between them, the stem and the classifier.

A network is its units: `plan` says how many channels and which stride each has, `stack` builds them. slim's networks
stride in the last unit of a block; `official` strides in the first unit of the next, as He et al. and most others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers, Normalization
from moxserve.tensorflow.nets.base import Build

__all__ = [
    "Options",
    "Unit",
    "UnitFunction",
    "classify",
    "plan",
    "residual_layers",
    "root",
    "shortcut",
    "stack",
    "unit_scope",
    "widths",
]

_BASE_WIDTHS = (64, 128, 256, 512)
_ROOT_STRIDE = 4
_MODES = ("FAN_IN", "FAN_OUT", "FAN_AVG")


@dataclass(frozen=True)
class Options:
    """What users may change in every residual network, under slim's names.

    Attributes:
        global_pool: whether the classifier reads the mean of the map; without, logits are a map of them.
        output_stride: how much smaller than the images the last map is; units that would make it smaller are dilated
            instead (Chen et al. 2016, arXiv:1606.00915). None for the network's own stride.
        spatial_squeeze: whether logits are `[batch, classes]`, not `[batch, 1, 1, classes]`.
        official: whether the first unit of a block strides, not the last one of the block before.
        keras: whether the network computes what Keras' application of its name does, for weights that come from there:
            the first pool sees zeros all around the map, and in ResNet v1 first units stride, in their first
            convolution. The variables are the same.
        weights_initializer_params: `factor`, `mode` (`FAN_IN`, `FAN_OUT` or `FAN_AVG`), `uniform` and `seed` of the
            variance scaling initializer of all weights; slim's defaults are 2.0, `FAN_IN`, False and None.
        batch_norm_decay: decay of the moving averages.
        batch_norm_epsilon: what is added to variances.
        batch_norm_scale: whether batch norms have a gamma.
    """

    global_pool: bool = True
    output_stride: int | None = None
    spatial_squeeze: bool = True
    official: bool = False
    keras: bool = False
    weights_initializer_params: Mapping[str, Any] | None = None
    batch_norm_decay: float = 0.997
    batch_norm_epsilon: float = 1e-5
    batch_norm_scale: bool = True


@dataclass(frozen=True)
class Unit:
    """One residual unit.

    Attributes:
        depth: channels of its output.
        width: channels between its convolutions.
        stride: how much smaller than its input its output is.
        rate: dilation of the 3x3 convolution that strides, and of those before it.
        rate_after: dilation of 3x3 convolutions after that one; larger where dilation has replaced the unit's stride.
    """

    depth: int
    width: int
    stride: int = 1
    rate: int = 1
    rate_after: int = 1


UnitFunction = Callable[[Layers, Any, Unit], Any]


def widths(depth_multiplier: float, min_base_depth: int) -> tuple[int, ...]:
    """Return the channels between a unit's convolutions, of each block.

    Args:
        depth_multiplier: factor of the paper's.
        min_base_depth: the fewest.

    Raises:
        UsageError: there would be none.
    """
    if not depth_multiplier > 0:
        raise UsageError(f"depth_multiplier: expected a number above 0, got {depth_multiplier!r}")
    if min_base_depth < 1:
        raise UsageError(f"min_base_depth: expected at least 1, got {min_base_depth!r}")
    return tuple(max(int(width * depth_multiplier), min_base_depth) for width in _BASE_WIDTHS)


def plan(
    units: Sequence[int], *, widths: Sequence[int] = _BASE_WIDTHS, expansion: int = 4, first_strides: bool = False
) -> list[list[Unit]]:
    """Return the units of each block; from one block to the next the map halves.

    Args:
        units: how many each block has.
        widths: channels between the convolutions, of each block.
        expansion: how many times as many channels the output has.
        first_strides: whether the first units of all blocks but the first stride; else the last units of all blocks but
            the last do.
    """
    blocks = []
    for block, (count, width) in enumerate(zip(units, widths, strict=True)):
        strides = [1] * count
        if first_strides and block > 0:
            strides[0] = 2
        elif not first_strides and block < len(units) - 1:
            strides[-1] = 2
        blocks.append([Unit(width * expansion, width, stride) for stride in strides])
    return blocks


def residual_layers(build: Build, options: Options) -> Layers:
    """Return layers with the defaults of slim's `resnet_arg_scope`, whose convolutions become end points."""
    norm = build.norm(options.batch_norm_decay, options.batch_norm_epsilon, scale=options.batch_norm_scale)
    initializer = _variance_scaling(**_checked_initializer(options.weights_initializer_params or {}))
    return build.layers(norm=norm, initializer=initializer, collect=frozenset({"conv2d"}))


def _checked_initializer(given: Mapping[str, Any]) -> dict[str, Any]:
    known = ("factor", "mode", "uniform", "seed")
    if not isinstance(given, Mapping):
        raise UsageError(f"weights_initializer_params: expected a mapping of {', '.join(known)}, got {given!r}")
    for key in given:
        if key not in known:
            raise UsageError(f"weights_initializer_params: no parameter {key!r}; {did_you_mean(str(key), known)}")
    mode = given.get("mode", "FAN_IN")
    if mode not in _MODES:
        raise UsageError(f"weights_initializer_params: mode: expected one of {', '.join(_MODES)}, got {mode!r}")
    factor = given.get("factor", 2.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise UsageError(f"weights_initializer_params: factor: expected a number above 0, got {factor!r}")
    return dict(given)


def _variance_scaling(factor: float = 2.0, mode: str = "FAN_IN", uniform: bool = False, seed: int | None = None) -> Any:
    distribution = "uniform" if uniform else "truncated_normal"
    return tf1.variance_scaling_initializer(factor, mode.lower(), distribution, seed)


def root(layers: Layers, images: Any, *, zero_padded: bool = False, **changes: Any) -> Any:
    """Build the stem: a 7x7 convolution and a 3x3 pool, both of stride 2.

    Args:
        layers: the network's.
        images: `[batch, height, width, channels]`, or channels first.
        zero_padded: whether the pool sees zeros all around the map; else the map alone.
        changes: arguments of the convolution that differ from the layers' defaults.
    """
    net = layers.conv2d_same(images, 64, 7, "conv1", stride=2, **changes)
    if zero_padded:
        return layers.max_pool(layers.pad(net, 1, 1, 1, 1), 3, "pool1", stride=2)
    return layers.max_pool(net, 3, "pool1", stride=2, padding="SAME")


def stack(
    layers: Layers,
    net: Any,
    blocks: Sequence[Sequence[Unit]],
    unit: UnitFunction,
    *,
    output_stride: int | None = None,
    stride: int = _ROOT_STRIDE,
) -> Any:
    """Build all units of all blocks, in scopes `block1/unit_1` and so on; a block's output is an end point.

    Args:
        layers: the network's.
        net: the stem's output.
        blocks: what `plan` gives.
        unit: builds one, without its scope.
        output_stride: see Options.
        stride: how much smaller than the images `net` is.

    Raises:
        UsageError: the network has no such output stride.
    """
    for number, units in enumerate(_dilated(blocks, stride, output_stride), 1):
        with layers.scope(f"block{number}") as scope:
            for position, spec in enumerate(units, 1):
                with layers.scope(f"unit_{position}"):
                    net = unit(layers, net, spec)
            _end_points(layers)[scope.name] = net
    return net


def _dilated(blocks: Sequence[Sequence[Unit]], stride: int, output_stride: int | None) -> Iterator[list[Unit]]:
    """Turn the strides that lie beyond the output stride into dilation of the units after them."""
    strides = [stride]
    for spec in (spec for units in blocks for spec in units):
        strides.append(strides[-1] * spec.stride)
    if output_stride is not None and output_stride not in strides:
        reachable = ", ".join(map(str, sorted(set(strides))))
        raise UsageError(f"output_stride: expected one of {reachable}, got {output_stride!r}")
    rate = 1
    for units in blocks:
        changed = []
        for spec in units:
            if stride == output_stride:
                changed.append(replace(spec, stride=1, rate=rate, rate_after=rate * spec.stride))
                rate *= spec.stride
            else:
                changed.append(spec)
                stride *= spec.stride
        yield changed


@contextmanager
def unit_scope(layers: Layers, name: str) -> Iterator[Callable[[Any], Any]]:
    """Open the scope of a unit's layers; yields what makes the unit's output an end point, and returns it."""
    with layers.scope(name) as scope:

        def record(net: Any) -> Any:
            _end_points(layers)[scope.name] = net
            return net

        yield record


def shortcut(layers: Layers, net: Any, unit: Unit, projected: Any = None, **changes: Any) -> Any:
    """Build what a unit adds its convolutions to: its input, or a 1x1 convolution of it where the depth changes.

    Args:
        layers: the network's.
        net: input of the unit.
        unit: the unit.
        projected: what the convolution reads; None for `net`.
        changes: arguments of the convolution that differ from the layers' defaults.
    """
    if layers.channels(net) != unit.depth:
        source = net if projected is None else projected
        return layers.conv2d(source, unit.depth, 1, "shortcut", stride=unit.stride, activation=None, **changes)
    return _subsampled(layers, net, unit)


def padded_shortcut(layers: Layers, net: Any, unit: Unit) -> Any:
    """Build what a unit adds its convolutions to without variables: its input, and zeros as channels that it lacks."""
    net = _subsampled(layers, net, unit)
    amounts = [[0, 0]] * 4
    amounts[layers.channel_axis] = [0, unit.depth - layers.channels(net)]
    return net if amounts[layers.channel_axis] == [0, 0] else tf.pad(net, amounts, name="shortcut")


def _subsampled(layers: Layers, net: Any, unit: Unit) -> Any:
    return net if unit.stride == 1 else layers.max_pool(net, 1, "shortcut", stride=unit.stride)


def last_norm(layers: Layers, zero_gamma: bool) -> Normalization | None:
    """Return the batch norm of a unit's last convolution: the layers', or one whose gamma starts at 0."""
    if not zero_gamma or layers.norm is None:
        return layers.norm
    return replace(layers.norm, gamma_initializer=tf1.zeros_initializer())


def classify(layers: Layers, net: Any, build: Build, options: Options) -> tuple[Any, dict[str, Any]]:
    """Build the end: the mean of the map, and the classifier as a 1x1 convolution.

    Args:
        layers: the network's.
        net: the last map.
        build: has the number of classes.
        options: what to do of it.

    Returns:
        Logits `[batch, classes]`, or a map of them without `spatial_squeeze`; without classes the mean, or the map. And
        all end points.

    Raises:
        UsageError: a map of logits cannot be squeezed.
    """
    prefix, end_points = tf1.get_variable_scope().name, _end_points(layers)
    if options.global_pool:
        net = layers.global_pool(net, "pool5", keep=True)
        end_points["global_pool"] = net
    if not build.num_classes:
        return net, end_points
    logits = layers.conv2d(net, build.num_classes, 1, "logits", activation=None, norm=None)
    if options.spatial_squeeze:
        logits = _squeezed(layers, logits)
        end_points[f"{prefix}/spatial_squeeze"] = logits
    axis = layers.channel_axis if logits.shape.rank == 4 else -1
    end_points["predictions"] = tf.nn.softmax(logits, axis, name="predictions")
    return logits, end_points


def _squeezed(layers: Layers, logits: Any) -> Any:
    height, width = layers.spatial(logits)
    if height not in (1, None) or width not in (1, None):
        raise UsageError(
            f"without global_pool the logits are a map of {height}x{width}, which cannot be squeezed",
            hint="give spatial_squeeze=False for the map, or global_pool=True for one vector an image",
        )
    return tf.squeeze(logits, layers.spatial_axes, name="SpatialSqueeze")


def _end_points(layers: Layers) -> dict[str, Any]:
    if layers.end_points is None:
        raise UsageError("the layers of a residual network need a dict of end points; Build.layers gives them one")
    return layers.end_points
