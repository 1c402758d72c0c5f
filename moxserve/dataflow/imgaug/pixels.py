"""What augmentors share: checks of arguments and images, and arithmetic on pixels that keeps the dtype."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = [
    "BORDER_CONSTANT",
    "BORDER_REPLICATE",
    "INTER_LINEAR",
    "channelwise",
    "check_color",
    "check_image",
    "check_interval",
    "check_probability",
    "half_open",
    "in_single_precision",
    "pointwise",
    "restore_channels",
    "saturate",
    "shape2d",
]

# Of cv2, so that a default argument does not import it.
INTER_LINEAR = 1
BORDER_CONSTANT = 0
BORDER_REPLICATE = 1


def check_image(img: Any) -> np.ndarray:
    """Return the image.

    Args:
        img: `[height, width]` or `[height, width, channels]`; uint8, or floating with values from 0 to 1 or to 255.

    Raises:
        UsageError: this is no such array.
    """
    if not isinstance(img, np.ndarray):
        raise UsageError(f"an augmentor expected an image as a NumPy array, got {type(img).__name__}")
    if img.dtype != np.uint8 and img.dtype.kind != "f":
        hint = "convert it: img.astype(np.uint8), or np.float32" if img.dtype.kind in "iub" else None
        raise UsageError(f"an augmentor expected a uint8 or floating image, got {img.dtype}", hint=hint)
    if img.ndim not in (2, 3) or not img.size:
        raise UsageError(
            f"an augmentor expected an image [height, width] or [height, width, channels], got shape {img.shape}"
        )
    return img


def check_color(img: np.ndarray, augmentor: str) -> None:
    """Raise UsageError unless an image has three channels."""
    if len(img.shape) != 3 or img.shape[2] != 3:
        raise UsageError(f"{augmentor} needs an image with 3 channels, got shape {tuple(img.shape)}")


def shape2d(shape: Any, name: str) -> tuple[int, int]:
    """Return height and width.

    Args:
        shape: one side, or (height, width); positive integers.
        name: of the argument, for the message.
    """
    sides = (shape, shape) if isinstance(shape, numbers.Integral) else shape
    valid = isinstance(sides, (Sequence, np.ndarray)) and len(sides) == 2
    if not valid or not all(isinstance(s, numbers.Integral) and int(s) > 0 for s in sides):
        raise UsageError(f"{name} must be a positive integer or (height, width), got {shape!r}")
    return int(sides[0]), int(sides[1])


def check_interval(name: str, value: Any, least: float = -np.inf, most: float = np.inf) -> tuple[Any, Any]:
    """Return (low, high) of an argument that is an interval.

    Args:
        name: of the argument, for the message.
        value: two numbers.
        least: bound of both, inclusive.
        most: likewise.
    """
    valid = isinstance(value, (Sequence, np.ndarray)) and len(value) == 2
    numeric = valid and all(isinstance(v, (int, float, np.number)) for v in value)
    if not numeric or not least <= value[0] <= value[1] <= most:
        bounds = f" from {least:g} to {most:g}" if np.isfinite([least, most]).any() else ""
        raise UsageError(f"{name} must be two numbers (low, high){bounds}, got {value!r}")
    return value[0], value[1]


def half_open(name: str, value: Any) -> tuple[int, int]:
    """Return (low, high) of an argument that is an interval of integers without its upper end.

    Args:
        name: of the argument, for the message.
        value: two integers, from 0.
    """
    low, high = check_interval(name, value, 0)
    if not all(isinstance(end, numbers.Integral) for end in (low, high)) or low >= high:
        raise UsageError(f"{name} must be integers (low, high) with low below high, got {value!r}")
    return int(low), int(high)


def check_probability(name: str, value: Any) -> float:
    """Return an argument that is a probability."""
    if not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
        raise UsageError(f"{name} must be a probability from 0 to 1, got {value!r}")
    return float(value)


def saturate(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Convert numbers to an image's dtype; uint8 is rounded and clipped."""
    if dtype == np.uint8:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.asarray(values, dtype)


def restore_channels(result: np.ndarray, img: np.ndarray) -> np.ndarray:
    """Give a result its axis of one channel back, which cv2 drops."""
    return result[:, :, np.newaxis] if img.ndim == 3 and result.ndim == 2 else result


def pointwise(img: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a function of single values; for uint8 it is computed for the 256 values that there are.

    Args:
        img: image.
        function: takes and returns an array of float32 or of the image's dtype.
    """
    if img.dtype != np.uint8:
        return np.asarray(function(img), img.dtype)
    table = saturate(function(np.arange(256, dtype=np.float32)), np.uint8)
    return restore_channels(opencv().LUT(img, table), img)


def channelwise(img: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a function of single values that may differ between channels; see `pointwise`.

    Args:
        img: `[height, width]` or `[height, width, channels]`.
        function: takes an array whose last axis is the channels, or has length 1, and returns it with the channels.
    """
    if img.ndim == 2:
        return channelwise(img[:, :, np.newaxis], function)[:, :, 0]
    if img.dtype != np.uint8:
        return np.asarray(function(img), img.dtype)
    tables = saturate(function(np.arange(256, dtype=np.float32).reshape(256, 1, 1)), np.uint8)
    tables = np.ascontiguousarray(np.broadcast_to(tables, (256, 1, img.shape[2])))
    return restore_channels(opencv().LUT(img, tables), img)


def in_single_precision(img: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a function of cv2 that knows uint8 and float32 only; other floats are converted there and back."""
    if img.dtype in (np.uint8, np.float32):
        return function(img)
    return function(img.astype(np.float32)).astype(img.dtype)
