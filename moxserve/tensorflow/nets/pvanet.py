"""PVANET, deep but lightweight: Kim et al. 2016, arXiv:1608.08021, and Hong et al. 2016, arXiv:1611.08588.

Two kinds of residual units: a 1x1, a 3x3 of which the negated outputs are channels too (C.ReLU), and a 1x1; and
inception modules. As the authors published it: 9.1, whose units normalise before they convolve, and 9.0, whose units
normalise after. A batch norm there has no gamma and beta; a layer of its own, `scale`, has. slim has no PVANET: names
follow the authors' layers, and no published checkpoint has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers, Normalization
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.heads import check_choice, check_size, classifier

__all__ = ["pvanet"]

_SMALLEST = 1  # every layer pads


@dataclass(frozen=True)
class _Residual:
    """A unit of the first kind, or what all units share.

    Attributes:
        name: of its scope.
        filters: of the 1x1 and the 3x3.
        out: channels of the sum.
        stride: of its first convolutions and its shortcut.
        project: whether the shortcut is a convolution.
        project_raw: whether that reads the unit's input, in 9.1, and not what its first norm made of it.
        first: whether it is the first of all, whose input is normalised already.
    """

    name: str
    filters: int
    out: int
    stride: int = 1
    project: bool = False
    project_raw: bool = True
    first: bool = False


@dataclass(frozen=True)
class _Inception:
    """A unit of the second kind: branches 1x1, 1x1-3x3, 1x1-3x3-3x3 and, if it is strided, pool-1x1.

    Attributes:
        name: of its scope.
        one: filters of the first branch.
        two: of the second.
        three: of the third.
        pool: of the last; 0 for none. Then the unit is strided, and its shortcut a convolution.
        out: channels of the sum.
        last: whether it is the last of all, which 9.1 normalises as well.
    """

    name: str
    one: int
    two: tuple[int, int]
    three: tuple[int, int, int]
    out: int
    pool: int = 0
    last: bool = False


_UNITS: tuple[_Residual | _Inception, ...] = (
    _Residual("conv2_1", 24, 64, project=True, first=True),
    _Residual("conv2_2", 24, 64),
    _Residual("conv2_3", 24, 64),
    _Residual("conv3_1", 48, 128, stride=2, project=True, project_raw=False),
    _Residual("conv3_2", 48, 128),
    _Residual("conv3_3", 48, 128),
    _Residual("conv3_4", 48, 128),
    _Inception("conv4_1", 64, (48, 128), (24, 48, 48), 256, pool=128),
    _Inception("conv4_2", 64, (64, 128), (24, 48, 48), 256),
    _Inception("conv4_3", 64, (64, 128), (24, 48, 48), 256),
    _Inception("conv4_4", 64, (64, 128), (24, 48, 48), 256),
    _Inception("conv5_1", 64, (96, 192), (32, 64, 64), 384, pool=128),
    _Inception("conv5_2", 64, (96, 192), (32, 64, 64), 384),
    _Inception("conv5_3", 64, (96, 192), (32, 64, 64), 384),
    _Inception("conv5_4", 64, (96, 192), (32, 64, 64), 384, last=True),
)


def pvanet(
    images: Any,
    build: Build,
    *,
    variant: str = "9.1",
    head: str = "dense",
    dropout_keep_prob: float = 0.5,
    spatial_squeeze: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Build PVANET.

    Args:
        images: `[batch, height, width, channels]`, of 224x224x3 by default (the authors trained on 192x192); any size.
        build: how.
        variant: `9.1` or `9.0`, the authors' numbers.
        head: `dense`, the authors': two layers of 4096 units before the classifier, the first over the whole map, so
            that its weights fit one size of images only; `global_pool`: the classifier reads the mean of the map, and
            the network has 3 million parameters, not 101 million.
        dropout_keep_prob: probability that a unit of fc6 and fc7 stays while training.
        spatial_squeeze: False gives logits `[batch, 1, 1, classes]`.

    Returns:
        Logits `[batch, classes]`, without classes the input of the classifier; and the end points, which are the
        outputs of the units and of the layers around them.

    Raises:
        UsageError: there is no such variant or head.
    """
    check_choice("head", head, ("dense", "global_pool"))
    before = check_choice("variant", variant, ("9.1", "9.0")) == "9.1"
    parts = _Parts(build.layers(activation=None), build.norm(0.999, 1e-5, center=False, scale=False))
    layers = parts.layers
    check_size(layers, images, "pvanet", _SMALLEST)
    with layers.scope("pvanet"):
        with layers.scope("conv1_1"):
            net = layers.conv2d_same(images, 16, 7, "conv", stride=2, bias=False)
            net = parts.record("pvanet/conv1_1", parts.normalised(net, negated=True))
        net = parts.record("pvanet/pool1", layers.max_pool(net, 3, "pool1", padding="SAME"))
        for unit in _UNITS:
            with layers.scope(unit.name):
                net = parts.record(f"pvanet/{unit.name}", _unit(parts, net, unit, before))
        if head == "dense":
            net = _dense(parts, net, dropout_keep_prob)
        else:
            net = parts.record("global_pool", layers.global_pool(net, "global_pool"))
        if build.num_classes:
            net = classifier(layers, net, build.num_classes, squeeze=spatial_squeeze)
    return net, layers.end_points or {}


@dataclass(frozen=True)
class _Parts:
    """The layers that units are made of.

    Attributes:
        layers: convolutions without norm or activation.
        norm: of all layers.
    """

    layers: Layers
    norm: Normalization

    def record(self, name: str, net: Any) -> Any:
        if self.layers.end_points is not None:
            self.layers.end_points[name] = net
        return net

    def normalised(self, net: Any, *, negated: bool = False, activation: bool = True) -> Any:
        """Normalise, append the negated channels if wanted, scale, and rectify unless told not to."""
        net = self.layers.batch_norm(net, "bn", norm=self.norm)
        if negated:
            net = self.layers.concat([net, -net])
        net = self._scaled(net)
        return tf.nn.relu(net) if activation else net

    def convolved(self, net: Any, filters: int, kernel: int, name: str, stride: int = 1) -> Any:
        """Convolve, normalise, scale and rectify, in a scope of the name."""
        with self.layers.scope(name):
            net = self.layers.conv2d(net, filters, kernel, "conv", stride=stride, bias=False)
            return self.normalised(net)

    def _scaled(self, net: Any) -> Any:
        """Multiply by gamma and add beta, which are float32 even for images of half precision, as of batch norms."""
        shape = [1] * net.shape.rank
        shape[self.layers.channel_axis] = count = self.layers.channels(net)
        groups = [tf1.GraphKeys.GLOBAL_VARIABLES, tf1.GraphKeys.MODEL_VARIABLES]
        dtype = tf.float64 if net.dtype == tf.float64 else tf.float32
        with self.layers.scope("scale"):
            gamma, beta = (
                tf1.get_variable(name, [count], dtype, initializer, collections=groups)
                for name, initializer in (("gamma", tf1.ones_initializer()), ("beta", tf1.zeros_initializer()))
            )
            return net * tf.reshape(tf.cast(gamma, net.dtype), shape) + tf.reshape(tf.cast(beta, net.dtype), shape)


def _unit(parts: _Parts, net: Any, unit: _Residual | _Inception, before: bool) -> Any:
    if isinstance(unit, _Inception):
        return _inception(parts, net, unit, before)
    return _residual_before(parts, net, unit) if before else _residual_after(parts, net, unit)


def _residual_before(parts: _Parts, net: Any, unit: _Residual) -> Any:
    """1x1, 3x3, 1x1, each of a normalised input: the third of its C.ReLU."""
    layers = parts.layers
    with layers.scope("1"):
        ready = net if unit.first else parts.normalised(net)
        inner = layers.conv2d(ready, unit.filters, 1, "conv", stride=unit.stride)
    with layers.scope("2"):
        inner = layers.conv2d(parts.normalised(inner), unit.filters, 3, "conv")
    with layers.scope("3"):
        inner = layers.conv2d(parts.normalised(inner, negated=True), unit.out, 1, "conv")
    if unit.project:
        net = layers.conv2d(net if unit.project_raw else ready, unit.out, 1, "proj", stride=unit.stride)
    return inner + net


def _residual_after(parts: _Parts, net: Any, unit: _Residual) -> Any:
    """1x1, 3x3, 1x1, each with its output normalised: the second's by C.ReLU, the third's without activation."""
    layers = parts.layers
    inner = parts.convolved(net, unit.filters, 1, "1", unit.stride)
    with layers.scope("2"):
        inner = parts.normalised(layers.conv2d(inner, unit.filters, 3, "conv", bias=False), negated=True)
    with layers.scope("3"):
        inner = parts.normalised(layers.conv2d(inner, unit.out, 1, "conv", bias=False), activation=False)
    return inner + (_projected(parts, net, unit.out, unit.stride) if unit.project else net)


def _inception(parts: _Parts, net: Any, unit: _Inception, before: bool) -> Any:
    layers = parts.layers
    stride = 2 if unit.pool else 1
    with layers.scope("incep"):
        ready = parts.normalised(net) if before else net
        branches = [parts.convolved(ready, unit.one, 1, "0", stride)]
        for i, (reduced, *filters) in enumerate((unit.two, unit.three), start=1):
            branch = parts.convolved(ready, reduced, 1, f"{i}_reduce", stride)
            for k, count in enumerate(filters):
                branch = parts.convolved(branch, count, 3, f"{i}_{k}")
            branches.append(branch)
        if unit.pool:
            pooled = layers.max_pool(ready, 3, "pool", padding="SAME")
            branches.append(parts.convolved(pooled, unit.pool, 1, "poolproj"))
    with layers.scope("out"):
        normalised = unit.last or not before
        inner = layers.conv2d(layers.concat(branches), unit.out, 1, "conv", bias=not normalised)
        if normalised:
            inner = parts.normalised(inner, activation=False)
    if unit.pool and before:
        net = layers.conv2d(net, unit.out, 1, "proj", stride=stride)
    elif unit.pool:
        net = _projected(parts, net, unit.out, stride)
    net = inner + net
    if not (unit.last and before):
        return net
    with layers.scope("last"):
        return parts.normalised(net)


def _projected(parts: _Parts, net: Any, filters: int, stride: int) -> Any:
    """The shortcut of 9.0: the only convolutions there that have biases and a norm."""
    net = parts.layers.conv2d(net, filters, 1, "proj", stride=stride)
    with parts.layers.scope("proj"):
        return parts.normalised(net, activation=False)


def _dense(parts: _Parts, net: Any, keep_prob: float) -> Any:
    """fc6 and fc7: dense layers with biases, normalised, of which units are dropped before the activation."""
    layers = parts.layers
    for number in (6, 7):
        name = f"fc{number}"
        net = layers.conv2d(net, 4096, layers.spatial(net), name, padding="VALID")
        with layers.scope(name):
            net = parts.normalised(net, activation=False)
        net = layers.dropout(net, keep_prob, f"dropout{number}")
        net = parts.record(f"pvanet/{name}", tf.nn.relu(net))
    return net
