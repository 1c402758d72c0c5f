"""Layers with the variables of TF-Slim's: same names, order, shapes and collections, so that its checkpoints fit.

`Layers` holds what the layers of a network share, in place of slim's arg scopes; what one layer does differently is an
argument of its call. Every layer opens the variable scope that its `name` says; variables come from
`tf.compat.v1.get_variable`, so that scopes, reuse, partitioners and custom getters (`mox.var_scope`) work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.images import (
    Format,
    Window,
    convolve,
    convolve_depthwise,
    convolve_transpose,
    count,
    pair,
    pool,
)
from moxserve.tensorflow.layers.normalization import Normalization, batch_norm
from moxserve.tensorflow.layers.variables import l2_regularizer, model_variable

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

__all__ = ["Layers", "Overrides"]

Activation = Callable[[Any], Any]


class Overrides(TypedDict, total=False):
    """What a layer may do differently from the others: these fields of `Layers`."""

    activation: Activation | None
    norm: Normalization | None
    initializer: Any
    bias_initializer: Any
    weight_decay: float
    padding: str


@dataclass(frozen=True)
class Layers:
    """Layers of a network, and what they have in common.

    Attributes:
        training: whether dropout drops and batch norms take the statistics of the batch.
        data_format: `NHWC` or `NCHW`, of all images given and returned.
        weight_decay: factor of the L2 losses of weights, in REGULARIZATION_LOSSES; 0 adds none.
        bias_weight_decay: likewise of biases.
        norm: batch norm that follows convolutions and dense layers, in place of biases; None for none.
        activation: function of a layer's result; None for none.
        initializer: of weights; None: uniform of Glorot (slim's `xavier_initializer`).
        bias_initializer: of biases; None: zeros.
        padding: of convolutions: `SAME` or `VALID`.
        end_points: where the outputs of some layers are put, under the full names of their variable scopes.
        collect: of which layers: `conv2d`, `separable_conv2d`, `conv2d_transpose`, `dense`, `batch_norm`, `max_pool`,
            `avg_pool`, `dropout`, `flatten`, `softmax`.
    """

    training: bool
    data_format: str = "NHWC"
    weight_decay: float = 0.0
    bias_weight_decay: float = 0.0
    norm: Normalization | None = None
    activation: Activation | None = tf.nn.relu
    initializer: Any = None
    bias_initializer: Any = None
    padding: str = "SAME"
    end_points: dict[str, Any] | None = None
    collect: frozenset[str] = frozenset()

    def replace(self, **changes: Any) -> Layers:
        """Return layers with some attributes changed; `end_points` stay the same dict."""
        return dataclasses.replace(self, **changes)

    def _overridden(self, changes: Overrides) -> Layers:
        """Return the layers of one call.

        Raises:
            UsageError: a keyword that layers do not have, such as `strides`.
        """
        for name in changes:
            if name not in Overrides.__annotations__:
                known = ["stride", "rate", "bias", *Overrides.__annotations__]
                raise UsageError(f"a layer has no argument {name!r}; {did_you_mean(name, known)}")
        return self.replace(**changes)

    @property
    def format(self) -> Format:
        """Where the axes of images are."""
        return Format(self.data_format)

    @property
    def channel_axis(self) -> int:
        """Index of the channels of images."""
        return self.format.channel_axis

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """Indices of height and width of images."""
        return self.format.spatial_axes

    def channels(self, x: Any) -> int:
        """Return the static number of channels."""
        return self.format.channels(x)

    def spatial(self, x: Any) -> tuple[int | None, int | None]:
        """Return height and width, None where they are not static."""
        return self.format.spatial(x)

    @contextmanager
    def scope(self, name: str, values: Sequence[Any] | None = None) -> Iterator[Any]:
        """Open a variable scope, and a scope of operations' names with it.

        Args:
            name: of the scope.
            values: tensors that it is opened for, of one graph.
        """
        with tf1.variable_scope(name, values=values) as scope:
            yield scope

    def conv2d(
        self,
        x: Any,
        filters: int,
        kernel: Any,
        name: str,
        *,
        stride: Any = 1,
        rate: Any = 1,
        groups: int = 1,
        bias: bool | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """Convolve images; variables `weights [kh, kw, in / groups, filters]`, then `biases` or `BatchNorm/…`.

        Args:
            x: `[B, H, W, in]` floats.
            filters: channels of the result.
            kernel: height and width of the kernel, or one number for both.
            name: of its variable scope.
            stride: likewise; one of stride and rate must be 1.
            rate: distance of the kernel's elements.
            groups: of channels that do not see each other.
            bias: whether biases are added; None: if there is no batch norm.
            **overrides: what this layer does differently.

        Returns:
            `[B, H', W', filters]`, of x's dtype.

        Raises:
            UsageError: a size does not fit.
        """
        own = self._overridden(overrides)
        with own.scope(name, [x]) as scope:
            incoming = own.channels(x)
            if incoming % count(groups, "groups") or count(filters, "filters") % groups:
                raise UsageError(f"{scope.name}: {incoming} channels to {filters} do not fall into {groups} groups")
            window = Window(pair(stride, "stride"), own.padding, own.format, pair(rate, "rate"))
            weights = own._weights("weights", [*pair(kernel, "kernel"), incoming // groups, filters], x.dtype)
            return own._finished(convolve(x, weights, window, groups), "conv2d", scope, bias)

    def conv2d_same(
        self,
        x: Any,
        filters: int,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        rate: int = 1,
        groups: int = 1,
        bias: bool | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """Convolve images with padding that does not depend on their size: half the kernel on each side.

        With SAME and a stride above 1 TensorFlow pads less at the top and left when the size is even. Here the result
        is the one of stride 1, subsampled from its first pixel. Arguments are those of `conv2d`.
        """
        if stride > 1:
            total = kernel + (kernel - 1) * (rate - 1) - 1
            x = self.pad(x, total // 2, total - total // 2, total // 2, total - total // 2)
        overrides["padding"] = "SAME" if stride == 1 else "VALID"
        return self.conv2d(x, filters, kernel, name, stride=stride, rate=rate, groups=groups, bias=bias, **overrides)

    def separable_conv2d(
        self,
        x: Any,
        filters: int | None,
        kernel: Any,
        name: str,
        *,
        depth_multiplier: int = 1,
        stride: Any = 1,
        rate: Any = 1,
        depthwise_weight_decay: float = 0.0,
        bias: bool | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """Convolve each channel by itself, then all together by 1x1 (Chollet 2016, arXiv:1610.02357).

        Variables `depthwise_weights [kh, kw, in, depth_multiplier]`, `pointwise_weights [1, 1, in * depth_multiplier,
        filters]`, then `biases` or `BatchNorm/…`.

        Args:
            x: `[B, H, W, in]` floats.
            filters: channels of the result; None leaves the second convolution away.
            kernel: height and width of the first convolution's kernel, or one number for both.
            name: of its variable scope.
            depth_multiplier: channels made of each channel by the first convolution.
            stride: of the first convolution.
            rate: likewise.
            depthwise_weight_decay: factor of the L2 loss of the first convolution's weights.
            bias: whether biases are added; None: if there is no batch norm.
            **overrides: what this layer does differently.
        """
        own = self._overridden(overrides)
        with own.scope(name, [x]) as scope:
            incoming = own.channels(x)
            window = Window(pair(stride, "stride"), own.padding, own.format, pair(rate, "rate"))
            shape = [*pair(kernel, "kernel"), incoming, count(depth_multiplier, "depth_multiplier")]
            first = own.replace(weight_decay=depthwise_weight_decay)
            depthwise = first._weights("depthwise_weights", shape, x.dtype)
            pointwise = None
            if filters is not None:
                shape = [1, 1, incoming * depth_multiplier, count(filters, "filters")]
                pointwise = own._weights("pointwise_weights", shape, x.dtype)
            y = convolve_depthwise(x, depthwise, window)
            if pointwise is not None:
                y = convolve(y, pointwise, Window((1, 1), "VALID", own.format))
            return own._finished(y, "separable_conv2d", scope, bias)

    def conv2d_transpose(
        self,
        x: Any,
        filters: int,
        kernel: Any,
        name: str,
        *,
        stride: Any = 1,
        bias: bool | None = None,
        **overrides: Unpack[Overrides],
    ) -> Any:
        """Apply a transposed convolution; variables `weights [kh, kw, filters, in]`, then `biases` or `BatchNorm/…`.

        Args:
            x: `[B, H, W, in]` floats.
            filters: channels of the result.
            kernel: height and width of the kernel, or one number for both.
            name: of its variable scope.
            stride: factor by which images grow.
            bias: whether biases are added; None: if there is no batch norm.
            **overrides: what this layer does differently.
        """
        own = self._overridden(overrides)
        with own.scope(name, [x]) as scope:
            window = Window(pair(stride, "stride"), own.padding, own.format)
            weights = own._weights(
                "weights", [*pair(kernel, "kernel"), count(filters, "filters"), own.channels(x)], x.dtype
            )
            return own._finished(convolve_transpose(x, weights, window), "conv2d_transpose", scope, bias)

    def dense(self, x: Any, units: int, name: str, *, bias: bool | None = None, **overrides: Unpack[Overrides]) -> Any:
        """Multiply the last axis by `weights [in, units]`; then `biases` or `BatchNorm/…`.

        Args:
            x: `[…, in]` floats, of rank 2 or more.
            units: length of the last axis of the result.
            name: of its variable scope.
            bias: whether biases are added; None: if there is no batch norm.
            **overrides: what this layer does differently.
        """
        own = self._overridden(overrides).replace(data_format="NHWC")
        with own.scope(name, [x]) as scope:
            weights = own._weights("weights", [own.channels(x), count(units, "units")], x.dtype)
            y = tf.matmul(x, weights) if x.shape.rank == 2 else tf.tensordot(x, weights, [[x.shape.rank - 1], [0]])
            return own._finished(y, "dense", scope, bias)

    def batch_norm(
        self,
        x: Any,
        name: str = "BatchNorm",
        *,
        norm: Normalization | None = None,
        activation: Activation | None = None,
    ) -> Any:
        """Normalise channels, in a variable scope of its own; see `normalization`.

        Args:
            x: `[B, H, W, C]` or `[B, C]` floats.
            name: of its variable scope.
            norm: how; None: as these layers are.
            activation: function of the result.

        Raises:
            UsageError: neither the call nor the layers say how.
        """
        how = norm or self.norm
        if how is None:
            raise UsageError(f"batch_norm {name!r} of layers without a norm; give it norm=Normalization(…)")
        with self.scope(name, [x]) as scope:
            y = batch_norm(x, how, self.training, self.format)
            return self._collected(y if activation is None else activation(y), "batch_norm", scope)

    def max_pool(self, x: Any, kernel: Any, name: str, *, stride: Any = 2, padding: str = "VALID") -> Any:
        """Return the largest value of each window."""
        return self._pooled(x, kernel, name, "max", Window(pair(stride, "stride"), padding, self.format))

    def avg_pool(self, x: Any, kernel: Any, name: str, *, stride: Any = 2, padding: str = "VALID") -> Any:
        """Return the mean value of each window; padding does not count."""
        return self._pooled(x, kernel, name, "avg", Window(pair(stride, "stride"), padding, self.format))

    def global_pool(self, x: Any, name: str | None = None, keep: bool = True) -> Any:
        """Return the mean of each channel: `[B, 1, 1, C]`, or `[B, C]` without `keep`."""
        return tf.reduce_mean(x, self.spatial_axes, keepdims=keep, name=name or "global_pool")

    def dropout(self, x: Any, keep_prob: float, name: str = "Dropout") -> Any:
        """Set values to zero at random in training, and scale the others so that the mean stays (Srivastava 2014)."""
        if not 0 < keep_prob <= 1:
            raise UsageError(f"dropout {name!r}: keep_prob is {keep_prob!r}; expected more than 0, at most 1")
        with self.scope(name, [x]) as scope:
            y = tf.nn.dropout(x, rate=1 - keep_prob) if self.training and keep_prob < 1 else tf.identity(x)
            return self._collected(y, "dropout", scope)

    def flatten(self, x: Any, name: str = "Flatten") -> Any:
        """Return `[B, …]` as `[B, all the rest]`."""
        with self.scope(name, [x]) as scope:
            rest, rows = x.shape[1:].num_elements(), x.shape[0]
            y = tf.reshape(x, [tf.shape(x)[0] if rows is None else rows, -1 if rest is None else rest])
            return self._collected(y, "flatten", scope)

    def softmax(self, x: Any, name: str = "softmax") -> Any:
        """Return the softmax over the last axis."""
        with self.scope(name, [x]) as scope:
            return self._collected(tf.nn.softmax(x), "softmax", scope)

    def concat(self, values: Sequence[Any], name: str | None = None) -> Any:
        """Put the channels of images together."""
        return tf.concat(list(values), self.channel_axis, name=name or "concat")

    def pad(self, x: Any, top: int, bottom: int, left: int, right: int) -> Any:
        """Surround images with zeros."""
        return self.format.pad(x, top, bottom, left, right)

    def _pooled(self, x: Any, kernel: Any, name: str, kind: str, window: Window) -> Any:
        with self.scope(name, [x]) as scope:
            return self._collected(pool(x, pair(kernel, "kernel"), window, kind), f"{kind}_pool", scope)

    def _variable(self, name: str, shape: list[int], dtype: Any, initializer: Any, decay: float = 0.0) -> Any:
        regularizer = l2_regularizer(decay) if decay else None
        return model_variable(name, shape, dtype, initializer, regularizer=regularizer)

    def _weights(self, name: str, shape: list[int], dtype: Any) -> Any:
        initializer = self.initializer or tf1.glorot_uniform_initializer()
        return self._variable(name, shape, dtype, initializer, self.weight_decay)

    def _finished(self, y: Any, kind: str, scope: Any, bias: bool | None) -> Any:
        """Add what follows a layer's product: biases or a batch norm, the activation, the end point."""
        if self.norm is None if bias is None else bias:
            initializer = self.bias_initializer or tf1.zeros_initializer()
            biases = self._variable("biases", [self.channels(y)], y.dtype, initializer, self.bias_weight_decay)
            y = tf.nn.bias_add(y, biases, data_format=_bias_format(y, self.data_format), name="BiasAdd")
        if self.norm is not None:
            with self.scope("BatchNorm", [y]):
                y = batch_norm(y, self.norm, self.training, self.format)
        return self._collected(y if self.activation is None else self.activation(y), kind, scope)

    def _collected(self, y: Any, kind: str, scope: Any) -> Any:
        if self.end_points is not None and kind in self.collect:
            self.end_points[scope.name] = y
        return y


def _bias_format(y: Any, data_format: str) -> str | None:
    return data_format if y.shape.rank == 4 else None
