"""Pools under tensorpack's names; the output is `name/output`."""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.images import pair, pool
from moxserve.tensorflow.layers.symbolic.convolutions import format_of, window_of
from moxserve.tensorflow.layers.symbolic.registry import layer_register

__all__ = ["AvgPooling", "FixedUnPooling", "GlobalAvgPooling", "MaxPooling"]

_OLD_NAMES = {"shape": "pool_size", "stride": "strides"}


def _pooled(inputs: Any, pool_size: Any, strides: Any, padding: str, data_format: str, kind: str) -> Any:
    window = window_of(pool_size if strides is None else strides, padding, data_format)
    return tf.identity(pool(inputs, pair(pool_size, "pool_size"), window, kind), name="output")


@layer_register(log_shape=True, old_names=_OLD_NAMES, positional=2)
def MaxPooling(
    inputs: Any, pool_size: Any, strides: Any = None, padding: str = "valid", data_format: str = "channels_last"
) -> Any:
    """Return the largest value of each window: `MaxPooling('pool0', x, 2)`.

    Args:
        inputs: `[B, H, W, C]` floats.
        pool_size: height and width of the window, or one number for both.
        strides: likewise; None: the window's size.
        padding: `valid` or `same`, in either case of letters.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
    """
    return _pooled(inputs, pool_size, strides, padding, data_format, "max")


@layer_register(log_shape=True, old_names=_OLD_NAMES, positional=2)
def AvgPooling(
    inputs: Any, pool_size: Any, strides: Any = None, padding: str = "valid", data_format: str = "channels_last"
) -> Any:
    """Return the mean value of each window; arguments are those of `MaxPooling`."""
    return _pooled(inputs, pool_size, strides, padding, data_format, "avg")


@layer_register(log_shape=True)
def GlobalAvgPooling(inputs: Any, data_format: str = "channels_last") -> Any:
    """Return the mean of each channel, `[B, C]` (Lin et al. 2013, arXiv:1312.4400).

    Args:
        inputs: `[B, H, W, C]` floats.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
    """
    return tf.reduce_mean(inputs, format_of(data_format).spatial_axes, name="output")


@layer_register(log_shape=True)
def FixedUnPooling(inputs: Any, shape: Any, unpool_mat: Any = None, data_format: str = "channels_last") -> Any:
    """Replace each pixel by a block: the Kronecker product with a matrix.

    Args:
        inputs: `[B, H, W, C]` floats.
        shape: height and width of the blocks, or one number for both.
        unpool_mat: `[height, width]`, a tensor or an array; None: one at the top left, zeros elsewhere.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.

    Returns:
        `[B, H * height, W * width, C]`.

    Raises:
        UsageError: the matrix has another shape.
    """
    given, (height, width) = format_of(data_format), pair(shape, "shape")
    corner = [[1.0 if row == column == 0 else 0.0 for column in range(width)] for row in range(height)]
    matrix = tf.cast(corner if unpool_mat is None else unpool_mat, inputs.dtype)
    if matrix.shape.as_list() != [height, width]:
        scope = tf1.get_variable_scope().name
        raise UsageError(f"FixedUnPooling {scope!r}: unpool_mat is {matrix.shape}; expected {(height, width)}")
    blocks, dynamic = [1] * 6, tf.shape(inputs)
    split: list[Any] = [dynamic[0]]  # the axes of the input, each spatial one followed by the block's
    merged: list[Any] = [dynamic[0]]
    static: list[int | None] = [inputs.shape[0]]
    for axis in (1, 2, 3):
        split.append(dynamic[axis])
        factor = 1
        if axis in given.spatial_axes:
            factor = height if axis == given.spatial_axes[0] else width
            blocks[len(split)] = factor
            split.append(1)
        merged.append(dynamic[axis] * factor)
        static.append(None if inputs.shape[axis] is None else inputs.shape[axis] * factor)
    product = tf.reshape(inputs, tf.stack(split)) * tf.reshape(matrix, blocks)
    y = tf.reshape(product, tf.stack(merged), name="output")
    y.set_shape(static)
    return y
