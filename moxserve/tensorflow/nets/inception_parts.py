"""What the Inception networks are made of: tables of layers in branches, and what builds them.

A network is a table from the names of its stages to what each does: one convolution or pool, or a *module*, a tuple of
branches whose outputs are concatenated over the channels. A branch is a tuple of layers, one after the other:

    "Mixed_3b": ((conv(64),), (conv(96), conv(128, 3)), (conv(16), conv(32, 3)), (max_pool(3), conv(32)))

Layers of a branch are named by their place, as slim names them: `Conv2d_0a_1x1`, `Conv2d_0b_3x3`; those that make the
image smaller are `Conv2d_1a_3x3` wherever they stand. Where slim's name is another, the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets.base import Build

__all__ = [
    "Conv",
    "Fork",
    "Module",
    "Pool",
    "Rows",
    "Tower",
    "avg_pool",
    "conv",
    "fork",
    "he_normal",
    "inception_layers",
    "max_pool",
    "normal",
    "scaled_depth",
]


@dataclass(frozen=True)
class Conv:
    """A convolution of a table; `conv` makes them.

    Attributes:
        filters: its output channels, before a depth multiplier.
        kernel: height and width.
        stride: of both axes.
        padding: `SAME` or `VALID`.
        name: its variable scope; None where the rule names it.
        stddev: of the normal distribution that its weights start from; None for the network's rule.
    """

    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    name: str | None = None
    stddev: float | None = None


@dataclass(frozen=True)
class Pool:
    """A pool of a table: `kind` is `Max` or `Avg`; the rest as of `Conv`."""

    kind: str
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    name: str | None = None


@dataclass(frozen=True)
class Fork:
    """Convolutions beside each other at the end of a branch, concatenated."""

    sides: tuple[Conv, ...]


Branch = tuple[Conv | Pool | Fork, ...]
Module = tuple[Branch, ...]
Rows = Mapping[str, Conv | Pool | Module]


def conv(filters: int, height: int = 1, width: int | None = None, **options: Any) -> Conv:
    """Return a convolution: `conv(64)` is 1x1, `conv(64, 3)` 3x3, `conv(64, 1, 7)` 1x7; options as of `Conv`."""
    return Conv(filters, (height, height if width is None else width), **options)


def max_pool(side: int, **options: Any) -> Pool:
    """Return a max pool over `side` x `side`; options as of `Conv`."""
    return Pool("Max", (side, side), **options)


def avg_pool(side: int, **options: Any) -> Pool:
    """Return a mean pool over `side` x `side`, where padding does not count; options as of `Conv`."""
    return Pool("Avg", (side, side), **options)


def fork(*sides: Conv) -> Fork:
    """Return convolutions that all see the same input and are concatenated."""
    return Fork(sides)


def normal(stddev: float) -> Any:
    """Return an initializer: a normal distribution around zero, cut at two standard deviations."""
    return tf1.truncated_normal_initializer(0.0, stddev)


def he_normal() -> Any:
    """Return an initializer: the normal distribution for ReLUs of He et al. (2015, arXiv:1502.01852), cut likewise."""
    return tf1.variance_scaling_initializer(2.0)


def scaled_depth(depth_multiplier: float, min_depth: int) -> Callable[[int], int]:
    """Return the rule for the number of filters of a thinner or thicker network.

    Args:
        depth_multiplier: factor of the filters of every layer, above 0.
        min_depth: fewest filters that any layer gets.

    Raises:
        UsageError: either is out of range.
    """
    if not depth_multiplier > 0:
        raise UsageError(f"depth_multiplier must be above 0, got {depth_multiplier}")
    if min_depth < 1:
        raise UsageError(f"min_depth must be at least 1, got {min_depth}")
    return lambda filters: max(int(filters * depth_multiplier), min_depth)


def inception_layers(build: Build, **defaults: Any) -> Layers:
    """Return the layers of Inception networks: batch norms without gamma (decay 0.9997, epsilon 1e-3), SAME padding."""
    return build.layers(norm=build.norm(0.9997, 1e-3), **defaults)


@dataclass(frozen=True)
class Tower:
    """Builds tables, and remembers the output of each stage.

    Attributes:
        layers: layers with the network's defaults.
        depth: from the filters in a table to those that are built.
        end_points: outputs of the stages by name, in the order in which they were built.
    """

    layers: Layers
    depth: Callable[[int], int] = int
    end_points: dict[str, Any] = field(default_factory=dict)

    def stages(self, x: Any, rows: Rows) -> Any:
        """Build the stages of a table one after the other, record each, and return the output of the last."""
        for name, row in rows.items():
            x = self.module(x, row, name) if isinstance(row, tuple) else self._layer(x, row, name)
            self.end_points[name] = x
        return x

    def module(self, x: Any, branches: Module, name: str) -> Any:
        """Build a module under a scope of its name, and return the concatenation of its branches."""
        with self.layers.scope(name):
            return self.branches(x, branches)

    def branches(self, x: Any, branches: Module) -> Any:
        """Build branches in the scopes `Branch_0`, `Branch_1`, … and return their concatenation."""
        outputs = []
        for number, branch in enumerate(branches):
            with self.layers.scope(f"Branch_{number}"):
                outputs.append(self._branch(x, branch))
        return self.layers.concat(outputs)

    def _branch(self, x: Any, branch: Branch) -> Any:
        letters = iter("abcdefgh")
        for step in branch:
            if isinstance(step, Fork):
                x = self.layers.concat([self._layer(x, side, _name(side, next(letters))) for side in step.sides])
            else:
                x = self._layer(x, step, _name(step, next(letters)))
        return x

    def _layer(self, x: Any, step: Conv | Pool, name: str) -> Any:
        layers = self.layers
        if isinstance(step, Pool):
            pool = layers.max_pool if step.kind == "Max" else layers.avg_pool
            return pool(x, step.kernel, name, stride=step.stride, padding=step.padding)
        start = {} if step.stddev is None else {"initializer": normal(step.stddev)}
        return layers.conv2d(
            x, self.depth(step.filters), step.kernel, name, stride=step.stride, padding=step.padding, **start
        )


def _name(step: Conv | Pool, letter: str) -> str:
    """Return slim's name of a layer in a branch."""
    if step.name is not None:
        return step.name
    kind = f"{step.kind}Pool" if isinstance(step, Pool) else "Conv2d"
    place = "1a" if step.stride > 1 or step.padding == "VALID" else f"0{letter}"
    return f"{kind}_{place}_{step.kernel[0]}x{step.kernel[1]}"
