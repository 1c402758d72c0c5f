"""Random distortions of batches of images, for training data that are few: flips, crops, scales, brightness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf

__all__ = ["distorted"]


def distorted(
    *, flip_left_right: bool = False, random_crop: float = 0, random_scale: float = 0, random_brightness: float = 0
) -> Callable[[Any], Any]:
    """Return a function of a batch of images `[batch, height, width, channels]` that distorts each on its own.

    Args:
        flip_left_right: mirror half of the images.
        random_crop: margin in percent: a part of `1 / (1 + random_crop / 100)` of each side is taken, anywhere.
        random_scale: percent by which that part is smaller at most.
        random_brightness: percent by which pixels are multiplied up or down at most.

    Returns:
        The function: images of the same shape and type. Integers keep their type's range.

    Raises:
        UsageError: a percentage is negative, or brightness above 100.
    """
    for name, value in (("random_crop", random_crop), ("random_scale", random_scale)):
        if value < 0:
            raise UsageError(f"{name}={value!r}: expected percent, 0 or more")
    if not 0 <= random_brightness <= 100:
        raise UsageError(f"random_brightness={random_brightness!r}: expected percent from 0 to 100")

    def distort(images: Any) -> Any:
        result = tf.cast(images, tf.float32)
        if random_crop or random_scale:
            result = _parts(result, 1 + random_crop / 100, random_scale / 100)
        if flip_left_right:
            result = tf.image.random_flip_left_right(result)
        if random_brightness:
            amount = random_brightness / 100
            result *= tf.random.uniform([tf.shape(result)[0], 1, 1, 1], 1 - amount, 1 + amount)
        result.set_shape(images.shape)
        if images.dtype.is_floating:
            return tf.cast(result, images.dtype)
        return tf.saturate_cast(tf.round(result), images.dtype)

    return distort


def _parts(images: Any, margin: float, scale: float) -> Any:
    """Take a random part of each image, and give it the image's size."""
    rows = tf.shape(images)[0]
    side = 1 / (margin * tf.random.uniform([rows, 1], 1.0, 1.0 + scale)) if scale else tf.fill([rows, 1], 1 / margin)
    corner = tf.random.uniform([rows, 2]) * (1 - side)
    boxes = tf.concat([corner, corner + side], 1)
    return tf.image.crop_and_resize(images, boxes, tf.range(rows), tf.shape(images)[1:3])
