"""What layers compute with images, on tensors alone: where their axes are, convolutions, pools and padding.

No variables here: `slim` and the layers of `symbolic` make them, each under its own names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = [
    "Format",
    "Window",
    "convolve",
    "convolve_depthwise",
    "convolve_transpose",
    "count",
    "onednn_enabled",
    "pair",
    "pool",
]

_FORMATS = ("NHWC", "NCHW")
_PADDINGS = ("SAME", "VALID")


def pair(value: Any, what: str = "size") -> tuple[int, int]:
    """Return a size of two axes that was given as one number or as two.

    Raises:
        UsageError: it is neither.
    """
    both = (value, value) if not isinstance(value, Sequence) else tuple(value)
    if len(both) != 2 or not all(hasattr(v, "__index__") and int(v) > 0 for v in both):
        raise UsageError(f"{what} is {value!r}; expected a positive integer, or two of them")
    return int(both[0]), int(both[1])


def count(value: Any, what: str) -> int:
    """Return a number of channels, or of groups of them.

    Raises:
        UsageError: it is no positive integer.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise UsageError(f"{what} is {value!r}; expected a positive integer")
    return int(value)


@dataclass(frozen=True)
class Format:
    """Where the axes of images are.

    Attributes:
        name: `NHWC` or `NCHW`.
    """

    name: str = "NHWC"

    def __post_init__(self) -> None:
        if self.name not in _FORMATS:
            raise UsageError(f"data_format is {self.name!r}; {did_you_mean(str(self.name).upper(), _FORMATS)}")

    @property
    def channel_axis(self) -> int:
        """Index of the channels."""
        return 1 if self.name == "NCHW" else 3

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """Indices of height and width."""
        return (2, 3) if self.name == "NCHW" else (1, 2)

    def channels(self, x: Any) -> int:
        """Return the static number of channels of images, or the static length of rows.

        Raises:
            UsageError: it is not known.
        """
        if x.shape.rank is None:
            raise UsageError(f"the rank of {x.name!r} is unknown; give the tensor a static shape with set_shape")
        count = x.shape[1 if self.name == "NCHW" and x.shape.rank > 2 else -1]
        if count is None:
            raise UsageError(f"the channels of {x.name!r} of shape {x.shape} are unknown; set them with set_shape")
        return int(count)

    def spatial(self, x: Any) -> tuple[int | None, int | None]:
        """Return height and width, None where they are not static."""
        height, width = self.spatial_axes
        return x.shape[height], x.shape[width]

    def full(self, values: tuple[int, int], other: int = 1) -> list[int]:
        """Return a list of four for the four axes: height's and width's values, and one for the other axes."""
        listed = [other] * 4
        for axis, value in zip(self.spatial_axes, values, strict=True):
            listed[axis] = value
        return listed

    def pad(self, x: Any, top: int, bottom: int, left: int, right: int, value: float = 0.0) -> Any:
        """Surround images with rows and columns of a value."""
        amounts = [[0, 0]] * 4
        for axis, sides in zip(self.spatial_axes, ([top, bottom], [left, right]), strict=True):
            amounts[axis] = sides
        return tf1.pad(x, amounts, constant_values=value)


@dataclass(frozen=True)
class Window:
    """How a kernel moves over images.

    Attributes:
        stride: pixels from one place to the next, of height and width.
        padding: `SAME` or `VALID`.
        format: of the images.
        rate: distance of a kernel's elements, of height and width (atrous convolution).
    """

    stride: tuple[int, int]
    padding: str
    format: Format
    rate: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.padding not in _PADDINGS:
            raise UsageError(f"padding is {self.padding!r}; expected 'SAME' or 'VALID'")
        if max(self.stride) > 1 and max(self.rate) > 1:
            raise UsageError(f"a convolution has stride {self.stride} and rate {self.rate}; one of them must be 1")

    @property
    def strides(self) -> list[int]:
        """The stride, with one number for each of the four axes."""
        return self.format.full(self.stride)


def convolve(x: Any, weights: Any, window: Window, groups: int = 1) -> Any:
    """Convolve images.

    Args:
        x: `[B, H, W, in]`, in the window's format.
        weights: `[kh, kw, in / groups, out]`.
        window: stride, padding and rate.
        groups: how many groups channels fall into that do not see each other (Krizhevsky 2012).

    Returns:
        `[B, H', W', out]`.
    """
    axis, name = window.format.channel_axis, window.format.name
    if (groups == 1 and max(window.rate) == 1) or _all_gradients():
        dilations, padding = window.format.full(window.rate), window.padding
        return tf1.nn.conv2d(x, weights, window.strides, padding, data_format=name, dilations=dilations, name="Conv2D")
    if groups > 1:
        parts = zip(tf.split(x, groups, axis), tf.split(weights, groups, 3), strict=True)
        return tf.concat([convolve(part, kernel, window) for part, kernel in parts], axis, name="Conv2D")
    # This one goes over space_to_batch.
    return tf1.nn.convolution(x, weights, window.padding, dilation_rate=window.rate, data_format=name, name="Conv2D")


def onednn_enabled() -> bool:
    """Whether TensorFlow computes with oneDNN on a CPU: as it does on x86, unless TF_ENABLE_ONEDNN_OPTS=0.

    Its own kernels know images in NHWC only, and no gradients of convolutions in groups.
    """
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def _all_gradients() -> bool:
    """Whether convolutions in groups, and those with a rate, have gradients here as they stand.

    An operation for each group takes three times as long as one for all, and going over space_to_batch a fifth more.
    """
    return onednn_enabled() or bool(tf.config.list_physical_devices("GPU"))


def convolve_depthwise(x: Any, weights: Any, window: Window) -> Any:
    """Convolve each channel by itself.

    Args:
        x: `[B, H, W, in]`, in the window's format.
        weights: `[kh, kw, in, m]`.
        window: stride, padding and rate; the stride must be the same in both directions, as TensorFlow's kernels want.

    Returns:
        `[B, H', W', in * m]`.
    """
    return tf1.nn.depthwise_conv2d(
        x,
        weights,
        strides=window.strides,
        padding=window.padding,
        rate=window.rate,
        data_format=window.format.name,
        name="depthwise",
    )


def convolve_transpose(x: Any, weights: Any, window: Window) -> Any:
    """Apply the gradient of a convolution: images grow by the stride.

    Args:
        x: `[B, H, W, in]`, in the window's format.
        weights: `[kh, kw, out, in]`.
        window: stride and padding. `SAME` gives `H * stride`, `VALID` gives `H * stride + max(kh - stride, 0)`.

    Returns:
        `[B, H', W', out]`, of static shape where x has one.
    """
    kernel, out = tuple(weights.shape[:2]), weights.shape[2]
    dynamic, static, given = tf.shape(x), [x.shape[0], None, None, None], window.format
    shape = [dynamic[0]] * 4
    shape[given.channel_axis] = static[given.channel_axis] = out
    for axis, side, stride in zip(given.spatial_axes, kernel, window.stride, strict=True):
        more = max(side - stride, 0) if window.padding == "VALID" else 0
        known = x.shape[axis]
        static[axis] = None if known is None else known * stride + more
        shape[axis] = dynamic[axis] * stride + more if known is None else static[axis]
    y = tf1.nn.conv2d_transpose(
        x,
        weights,
        output_shape=tf.stack(shape),
        strides=window.strides,
        padding=window.padding,
        data_format=given.name,
        name="conv2d_transpose",
    )
    y.set_shape(static)
    return y


def pool(x: Any, kernel: tuple[int, int], window: Window, kind: str) -> Any:
    """Pool images.

    Args:
        x: `[B, H, W, C]`, in the window's format.
        kernel: height and width.
        window: stride and padding.
        kind: `max` or `avg`.
    """
    operation = tf1.nn.max_pool if kind == "max" else tf1.nn.avg_pool
    return operation(
        x,
        ksize=window.format.full(kernel),
        strides=window.strides,
        padding=window.padding,
        data_format=window.format.name,
    )
