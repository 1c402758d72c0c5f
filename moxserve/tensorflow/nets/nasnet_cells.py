"""Cells of NASNet and PNASNet: five sums of two operations each, on the outputs of the two cells before.

A `CellPlan` is what a search found, `Cells` builds cells of any plan. NASNet: Learning transferable architectures for
scalable image recognition (Zoph et al. 2017, arXiv:1707.07012), figure 4; PNASNet: Progressive neural architecture
search (Liu et al. 2017, arXiv:1712.00559), figure 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers, Normalization

__all__ = ["NASNET_NORMAL", "NASNET_REDUCTION", "PNASNET", "Activation", "CellPlan", "Cells", "DropPath", "Place"]

_CLIP = 6.0  # Of what bounded networks compute, as ReLU6.


@dataclass(frozen=True)
class Operation:
    """What one side of a sum does.

    Attributes:
        kind: `separable` (two of them), `avg` or `max` (pooling), or `none` (the state as it is).
        kernel: side of the kernel.
    """

    kind: str
    kernel: int = 1


_SEPARABLE_3, _SEPARABLE_5, _SEPARABLE_7 = (Operation("separable", size) for size in (3, 5, 7))
_AVERAGE, _MAXIMUM, _NONE = Operation("avg", 3), Operation("max", 3), Operation("none")


@dataclass(frozen=True)
class CellPlan:
    """What a cell computes from its states: 0 is the output of the cell before, 1 of the one before that.

    Attributes:
        sums: two states and what is done to each; the sums are states 2 to 6.
        outputs: states whose concatenation is the cell's output.
    """

    sums: tuple[tuple[tuple[int, Operation], tuple[int, Operation]], ...]
    outputs: tuple[int, ...]

    @property
    def operations(self) -> int:
        """How many operations are not `none`."""
        return sum(operation.kind != "none" for pair in self.sums for _, operation in pair)


NASNET_NORMAL = CellPlan(
    sums=(
        ((0, _SEPARABLE_5), (1, _SEPARABLE_3)),
        ((1, _SEPARABLE_5), (1, _SEPARABLE_3)),
        ((0, _AVERAGE), (1, _NONE)),
        ((1, _AVERAGE), (1, _AVERAGE)),
        ((0, _SEPARABLE_3), (0, _NONE)),
    ),
    outputs=(1, 2, 3, 4, 5, 6),
)
NASNET_REDUCTION = CellPlan(
    sums=(
        ((0, _SEPARABLE_5), (1, _SEPARABLE_7)),
        ((0, _MAXIMUM), (1, _SEPARABLE_7)),
        ((0, _AVERAGE), (1, _SEPARABLE_5)),
        ((3, _NONE), (2, _AVERAGE)),
        ((2, _SEPARABLE_3), (0, _MAXIMUM)),
    ),
    outputs=(3, 4, 5, 6),
)
PNASNET = CellPlan(
    sums=(
        ((1, _SEPARABLE_5), (1, _MAXIMUM)),
        ((0, _SEPARABLE_7), (0, _MAXIMUM)),
        ((0, _SEPARABLE_5), (0, _SEPARABLE_3)),
        ((4, _SEPARABLE_3), (0, _MAXIMUM)),
        ((1, _SEPARABLE_3), (0, _NONE)),
    ),
    outputs=(2, 3, 4, 5, 6),
)


class Activation:
    """ReLU, or ReLU6, once of each tensor: cells begin most of their operations with that of the same few states."""

    def __init__(self, bounded: bool) -> None:
        self._function = tf.nn.relu6 if bounded else tf.nn.relu
        self._done: dict[Any, Any] = {}

    def __call__(self, net: Any) -> Any:
        """Return the tensor, activated."""
        key = net.ref()
        if key not in self._done:
            self._done[key] = self._function(net)
        return self._done[key]


@dataclass(frozen=True)
class DropPath:
    """Drops operations, of single examples, while training: more often in later cells, and in later steps.

    Attributes:
        keep_prob: probability that an operation of the last cell stays, from the last step on.
        cells: number of cells of the network.
        steps: how many steps it takes to come down to that probability.
        step: tensor of the training's step.
    """

    keep_prob: float
    cells: int
    steps: int
    step: Any

    def masks(self, count: int, cell: int, like: Any) -> Iterator[Any]:
        """Yield factors `[batch, 1, 1, 1]`, 0 or 1 / probability, for `count` operations of a cell.

        Args:
            count: of operations.
            cell: number of the cell, from 0.
            like: tensor `[batch, …]`, whose type they have.
        """
        drop_prob = (cell + 1) / self.cells * (1.0 - self.keep_prob)
        with tf1.name_scope("drop_path"):
            keep_prob = 1.0 - tf.minimum(1.0, tf.cast(self.step, tf.float32) / self.steps) * drop_prob
            noise = tf.random.uniform(tf.stack([count, tf.shape(like)[0], 1, 1, 1]))
            factors = tf.cast(tf.floor(keep_prob + noise) / keep_prob, like.dtype)
            return iter(tf.unstack(factors, num=count))


@dataclass(frozen=True)
class Place:
    """Where a cell is.

    Attributes:
        name: of its variable scope.
        number: of the cell, from 0, the stem's included.
        scaling: factor of its filters.
        stride: 2 halves the map.
    """

    name: str
    number: int
    scaling: float
    stride: int = 1


@dataclass(frozen=True)
class Cells:
    """Builds cells.

    Attributes:
        layers: of the network, without an activation and a norm.
        norm: that follows convolutions, in a scope of its own.
        filters: of each operation, times the scaling of the cell.
        activation: of the network.
        drop_path: None drops nothing.
        bounded: whether all outputs of operations are clipped to -6 … 6.
    """

    layers: Layers
    norm: Normalization
    filters: int
    activation: Activation
    drop_path: DropPath | None = None
    bounded: bool = False

    def build(self, plan: CellPlan, net: Any, previous: Any | None, place: Place) -> Any:
        """Build a cell.

        Args:
            plan: what it computes.
            net: output of the cell before.
            previous: output of the one before that; None for `net` itself, as it is.
            place: where the cell is.

        Returns:
            `[batch, height, width, channels]`, channels of all outputs together.
        """
        filters = int(self.filters * place.scaling)
        with self.layers.scope(place.name):
            previous = net if previous is None else self._fit(previous, net, filters)
            states = [self._project(self.activation(net), filters, "1x1", "beginning_bn"), previous]
            masks = None
            if self.drop_path is not None:
                masks = self.drop_path.masks(plan.operations, place.number, net)
            for index, pair in enumerate(plan.sums):
                sides = []
                for side, (state, operation) in zip(("left", "right"), pair, strict=True):
                    stride = place.stride if state < 2 else 1
                    done = self._operate(states[state], operation, filters, stride, f"comb_iter_{index}/{side}")
                    sides.append(done * next(masks) if masks is not None and operation.kind != "none" else done)
                total = tf.add(*sides, name=f"comb_iter_{index}/combine/add")
                states.append(tf.nn.relu6(total) if self.bounded else total)
            return self._concatenate(states, plan.outputs)

    def _fit(self, previous: Any, net: Any, filters: int) -> Any:
        """Give the output of the cell before the last the size and the channels that this cell computes with."""
        layers = self.layers
        if layers.spatial(previous) != layers.spatial(net):
            return self._factorized_reduction(self.activation(previous), filters, 2, "")
        if layers.channels(previous) != filters:
            return self._project(self.activation(previous), filters, "prev_1x1", "prev_bn")
        return previous

    def _project(self, net: Any, filters: int, convolution: str, norm: str, stride: int = 1) -> Any:
        net = self.layers.conv2d(net, filters, 1, convolution, stride=stride, bias=False)
        return self.layers.batch_norm(net, norm, norm=self.norm)

    def _factorized_reduction(self, net: Any, filters: int, stride: int, scope: str) -> Any:
        """Halve a map without losing every other place: half of the filters see it shifted by one place.

        The shifted map is filled with zeros at its end, so that odd maps give two halves of the same size. `scope` ends
        with a slash if it is not empty.
        """
        layers = self.layers
        if stride == 1:
            return self._project(net, filters, f"{scope}path_conv", f"{scope}path_bn")
        half = filters // 2
        first = layers.conv2d(net, half, 1, f"{scope}path1_conv", stride=stride, bias=False)
        with tf1.name_scope(f"{scope}shift"):
            shifted = layers.pad(net, 0, 1, 0, 1)
            shifted = shifted[:, :, 1:, 1:] if layers.channel_axis == 1 else shifted[:, 1:, 1:, :]
        second = layers.conv2d(shifted, filters - half, 1, f"{scope}path2_conv", stride=stride, bias=False)
        return layers.batch_norm(layers.concat([first, second]), f"{scope}final_path_bn", norm=self.norm)

    def _operate(self, net: Any, operation: Operation, filters: int, stride: int, scope: str) -> Any:
        """Do one operation. What strides or changes the channels only has a 1x1 convolution for that."""
        layers, fits = self.layers, self.layers.channels(net) == filters
        if operation.kind == "separable":
            return self._clip(self._separable(net, operation.kernel, filters, stride, scope))
        if operation.kind == "none":
            if stride == 1 and fits:
                return self.activation(net) if self.bounded else net
            return self._clip(self._project(self.activation(net), filters, f"{scope}/1x1", f"{scope}/bn_1", stride))
        pool = layers.avg_pool if operation.kind == "avg" else layers.max_pool
        net = self.activation(net) if self.bounded else net
        net = pool(net, operation.kernel, f"{scope}/{operation.kind}_pool", stride=stride, padding="SAME")
        return self._clip(net if fits else self._project(net, filters, f"{scope}/1x1", f"{scope}/bn_1"))

    def _separable(self, net: Any, kernel: int, filters: int, stride: int, scope: str) -> Any:
        """Convolve twice, separably; the first convolution strides."""
        for number in (1, 2):
            name = f"{kernel}x{kernel}_{number}"
            net = self.layers.separable_conv2d(
                self.activation(net),
                filters,
                kernel,
                f"{scope}/separable_{name}",
                stride=stride if number == 1 else 1,
                depthwise_weight_decay=self.layers.weight_decay,
                bias=False,
            )
            net = self.layers.batch_norm(net, f"{scope}/bn_sep_{name}", norm=self.norm)
        return net

    def _clip(self, net: Any) -> Any:
        return tf.clip_by_value(net, -_CLIP, _CLIP) if self.bounded else net

    def _concatenate(self, states: list[Any], outputs: tuple[int, ...]) -> Any:
        """Concatenate the cell's outputs; a state of another size or width than the last one's is fitted before."""
        layers, last = self.layers, states[-1]
        parts = []
        for index in outputs:
            state = states[index]
            halve = layers.spatial(state) != layers.spatial(last)
            if halve or layers.channels(state) != layers.channels(last):
                scope = f"cell_output/reduction_{index}/"
                state = self._factorized_reduction(state, layers.channels(last), 2 if halve else 1, scope)
            parts.append(state)
        return layers.concat(parts, "cell_output/concat")
