"""Convolutions and dense layers under tensorpack's names: variables `W` and `b`, output `name/output`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
)
from moxserve.tensorflow.layers.symbolic.registry import VariableHolder, layer_register, register
from moxserve.tensorflow.layers.variables import model_variable

__all__ = ["Conv2D", "Conv2DTranspose", "Deconv2D", "DepthwiseConv2D", "FullyConnected", "SeparableConv2D"]

Function = Callable[[Any], Any]

_FORMATS = {"channels_last": "NHWC", "NHWC": "NHWC", "channels_first": "NCHW", "NCHW": "NCHW"}
_OLD_NAMES = {"nl": "activation", "W_init": "kernel_initializer", "b_init": "bias_initializer"}
_OLD_CONV = {**_OLD_NAMES, "out_channel": "filters", "kernel_shape": "kernel_size", "stride": "strides"}


def format_of(data_format: str) -> Format:
    """Return where axes are.

    Args:
        data_format: `channels_last`, `channels_first`, `NHWC` or `NCHW`.

    Raises:
        UsageError: it is none of them.
    """
    if data_format not in _FORMATS:
        raise UsageError(f"data_format is {data_format!r}; {did_you_mean(str(data_format), _FORMATS)}")
    return Format(_FORMATS[data_format])


def he_normal() -> Any:
    """Return the initializer of He et al. 2015 (arXiv:1502.01852): normal, of variance 2 / fan-in, not truncated."""
    return tf1.variance_scaling_initializer(2.0, mode="fan_in", distribution="untruncated_normal")


def window_of(strides: Any, padding: str, data_format: str, rate: Any = 1) -> Window:
    """Return how a kernel moves, of the arguments of layers."""
    padding = str(padding).upper()
    return Window(pair(strides, "strides"), padding, format_of(data_format), pair(rate, "dilation_rate"))


def _finish(
    y: Any,
    variables: dict[str, Any],
    bias: tuple[bool, Any, Any],
    activation: Function | None,
    activity_regularizer: Function | None,
    given: Format | None = None,
) -> Any:
    """Add the bias and the activation; name the output.

    Args:
        y: product of a layer's input and kernel.
        variables: the kernels; the bias is added to them.
        bias: whether there is one, its initializer and its regularizer.
        activation: function of the result.
        activity_regularizer: gives a loss of the result.
        given: of y, None for rows.
    """
    use_bias, initializer, regularizer = bias
    if use_bias:
        channels = y.shape[-1] if given is None else given.channels(y)
        initializer = initializer or tf1.zeros_initializer()
        variables["b"] = model_variable("b", [channels], y.dtype, initializer, regularizer=regularizer)
        y = tf.nn.bias_add(y, variables["b"], data_format=None if given is None else given.name)
    if activation is not None:
        y = activation(y)
    if activity_regularizer is not None:
        tf1.add_to_collection(tf1.GraphKeys.REGULARIZATION_LOSSES, activity_regularizer(y))
    y = tf.identity(y, name="output")
    y.variables = VariableHolder(**variables)
    return y


@layer_register(log_shape=True, old_names=_OLD_CONV, positional=2)
def Conv2D(
    inputs: Any,
    filters: int,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "same",
    data_format: str = "channels_last",
    dilation_rate: Any = 1,
    activation: Function | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Function | None = None,
    bias_regularizer: Function | None = None,
    activity_regularizer: Function | None = None,
    split: int = 1,
) -> Any:
    """Convolve images: `Conv2D('conv0', x, 32, 3)`; variables `W [kh, kw, in / split, filters]` and `b`.

    Args:
        inputs: `[B, H, W, in]` floats.
        filters: channels of the result.
        kernel_size: height and width of the kernel, or one number for both.
        strides: likewise.
        padding: `same` or `valid`, in either case of letters.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
        dilation_rate: distance of the kernel's elements.
        activation: function of the result, such as `tf.nn.relu` or `BNReLU`.
        use_bias: whether there is a `b`.
        kernel_initializer: of W; None: normal of variance 2 / fan-in.
        bias_initializer: of b; None: zeros.
        kernel_regularizer: gives the loss of W, for REGULARIZATION_LOSSES.
        bias_regularizer: gives that of b.
        activity_regularizer: gives that of the result.
        split: groups of channels that do not see each other.
    """
    window = window_of(strides, padding, data_format, dilation_rate)
    incoming = window.format.channels(inputs)
    if incoming % count(split, "split") or count(filters, "filters") % split:
        scope = tf1.get_variable_scope().name
        raise UsageError(f"Conv2D {scope!r}: {incoming} channels to {filters} do not fall into split={split} groups")
    kernel = model_variable(
        "W",
        [*pair(kernel_size, "kernel_size"), incoming // split, filters],
        inputs.dtype,
        kernel_initializer or he_normal(),
        regularizer=kernel_regularizer,
    )
    y, bias = convolve(inputs, kernel, window, split), (use_bias, bias_initializer, bias_regularizer)
    return _finish(y, {"W": kernel}, bias, activation, activity_regularizer, window.format)


@layer_register(log_shape=True, old_names=_OLD_CONV, positional=3)
def Conv2DTranspose(
    inputs: Any,
    filters: int,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "same",
    data_format: str = "channels_last",
    activation: Function | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Function | None = None,
    bias_regularizer: Function | None = None,
    activity_regularizer: Function | None = None,
) -> Any:
    """Apply a transposed convolution; variables `W [kh, kw, filters, in]` and `b`. `Deconv2D` is another name of it.

    Images grow to `H * stride` (`same`), or `H * stride + max(kh - stride, 0)` (`valid`). Arguments are those of
    `Conv2D`.
    """
    window = window_of(strides, padding, data_format)
    kernel = model_variable(
        "W",
        [*pair(kernel_size, "kernel_size"), count(filters, "filters"), window.format.channels(inputs)],
        inputs.dtype,
        kernel_initializer or he_normal(),
        regularizer=kernel_regularizer,
    )
    y, bias = convolve_transpose(inputs, kernel, window), (use_bias, bias_initializer, bias_regularizer)
    return _finish(y, {"W": kernel}, bias, activation, activity_regularizer, window.format)


Deconv2D = Conv2DTranspose
register("Deconv2D", Deconv2D)


@layer_register(log_shape=True, old_names=_OLD_CONV, positional=1)
def DepthwiseConv2D(
    inputs: Any,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "same",
    data_format: str = "channels_last",
    dilation_rate: Any = 1,
    depth_multiplier: int = 1,
    activation: Function | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Function | None = None,
    bias_regularizer: Function | None = None,
    activity_regularizer: Function | None = None,
) -> Any:
    """Convolve each channel by itself; variables `W [kh, kw, in, depth_multiplier]` and `b`.

    Each channel becomes `depth_multiplier` ones. The other arguments are those of `Conv2D`.
    """
    window = window_of(strides, padding, data_format, dilation_rate)
    kernel = model_variable(
        "W",
        [
            *pair(kernel_size, "kernel_size"),
            window.format.channels(inputs),
            count(depth_multiplier, "depth_multiplier"),
        ],
        inputs.dtype,
        kernel_initializer or he_normal(),
        regularizer=kernel_regularizer,
    )
    y, bias = convolve_depthwise(inputs, kernel, window), (use_bias, bias_initializer, bias_regularizer)
    return _finish(y, {"W": kernel}, bias, activation, activity_regularizer, window.format)


@layer_register(log_shape=True, old_names=_OLD_CONV, positional=2)
def SeparableConv2D(
    inputs: Any,
    filters: int,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "same",
    data_format: str = "channels_last",
    dilation_rate: Any = 1,
    depth_multiplier: int = 1,
    activation: Function | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Function | None = None,
    bias_regularizer: Function | None = None,
    activity_regularizer: Function | None = None,
) -> Any:
    """Convolve each channel by itself, then all by 1x1 (Chollet 2016, arXiv:1610.02357).

    Variables `depthwise_W [kh, kw, in, depth_multiplier]`, `pointwise_W [1, 1, in * depth_multiplier, filters]`, `b`.
    The first convolution makes `depth_multiplier` channels of each. The other arguments are those of `Conv2D`;
    initializer and regularizer are of both kernels.
    """
    window = window_of(strides, padding, data_format, dilation_rate)
    incoming = window.format.channels(inputs)
    shapes = {
        "depthwise_W": [*pair(kernel_size, "kernel_size"), incoming, count(depth_multiplier, "depth_multiplier")],
        "pointwise_W": [1, 1, incoming * depth_multiplier, count(filters, "filters")],
    }
    initializer = kernel_initializer or he_normal()
    kernels = {
        name: model_variable(name, shape, inputs.dtype, initializer, regularizer=kernel_regularizer)
        for name, shape in shapes.items()
    }
    y = convolve_depthwise(inputs, kernels["depthwise_W"], window)
    y = convolve(y, kernels["pointwise_W"], Window((1, 1), "VALID", window.format))
    bias = (use_bias, bias_initializer, bias_regularizer)
    return _finish(y, kernels, bias, activation, activity_regularizer, window.format)


@layer_register(log_shape=True, old_names={**_OLD_NAMES, "out_dim": "units"}, positional=1)
def FullyConnected(
    inputs: Any,
    units: int,
    activation: Function | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Function | None = None,
    bias_regularizer: Function | None = None,
    activity_regularizer: Function | None = None,
) -> Any:
    """Flatten to `[B, in]` and multiply by `W [in, units]`; variables `W` and `b`.

    Args:
        inputs: `[B, ...]` floats, of static shape but for the batch.
        units: length of the result's rows.
        activation: function of the result.
        use_bias: whether there is a `b`.
        kernel_initializer: of W; None: normal of variance 2 / in.
        bias_initializer: of b; None: zeros.
        kernel_regularizer: gives the loss of W, for REGULARIZATION_LOSSES.
        bias_regularizer: gives that of b.
        activity_regularizer: gives that of the result.
    """
    length = inputs.shape[1:].num_elements()
    if length is None:
        scope = tf1.get_variable_scope().name
        raise UsageError(f"FullyConnected {scope!r}: shape {inputs.shape} is not static but for the batch")
    rows = inputs if inputs.shape.rank == 2 else tf.reshape(inputs, [-1, length])
    initializer = kernel_initializer or he_normal()
    kernel = model_variable(
        "W", [length, count(units, "units")], inputs.dtype, initializer, regularizer=kernel_regularizer
    )
    bias = (use_bias, bias_initializer, bias_regularizer)
    return _finish(tf.matmul(rows, kernel), {"W": kernel}, bias, activation, activity_regularizer)
