"""Random colour changes for batches, each image with numbers of its own.

TensorFlow's `random_brightness` and the like draw one number for all images of a batch. The formulas are theirs:
`tests/tensorflow/preprocessing` holds each one against `tf.image.adjust_*`.
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.preprocessing.draws import Draws

__all__ = ["brightness", "contrast", "hue", "random_values", "saturation"]


def random_values(draws: Draws, images: Any, lower: float, upper: float) -> Any:
    """Draw a number for each image of a batch: `[batch, 1, 1, 1] float32`, uniform in [lower, upper)."""
    return draws.uniform([tf.shape(images)[0], 1, 1, 1], lower, upper)


def brightness(images: Any, delta: Any) -> Any:
    """Add a number to all values.

    Args:
        images: `[batch, height, width, channels] float32`.
        delta: `[batch, 1, 1, 1] float32`.
    """
    return images + delta


def contrast(images: Any, factor: Any) -> Any:
    """Scale the distance of each value from the mean of its channel.

    Args:
        images: `[batch, height, width, channels] float32`.
        factor: `[batch, 1, 1, 1] float32`.
    """
    mean = tf.reduce_mean(images, [1, 2], keepdims=True)
    return (images - mean) * factor + mean


def saturation(images: Any, factor: Any) -> Any:
    """Scale the saturation of HSV; hue and value stay.

    Saturation s = 1 - min / max becomes min(s * factor, 1), so that all distances from the largest channel scale by
    min(factor, 1 / s). A pixel without a positive value counts as grey.

    Args:
        images: `[batch, height, width, 3] float32`.
        factor: `[batch, 1, 1, 1] float32`, not negative.
    """
    largest = tf.reduce_max(images, -1, keepdims=True)
    spread = largest - tf.reduce_min(images, -1, keepdims=True)
    scale = tf.minimum(factor, tf.math.divide_no_nan(largest, spread))
    return largest - (largest - images) * tf.where(largest > 0, scale, tf.zeros_like(scale))


def hue(images: Any, delta: Any) -> Any:
    """Turn the hue of HSV.

    Hue does not depend on the smallest channel, which is taken off first: values below 0 have a hue, too.

    Args:
        images: `[batch, height, width, 3] float32`.
        delta: `[batch, 1, 1, 1] float32`; 1 is the whole circle.
    """
    least = tf.reduce_min(images, -1, keepdims=True)
    angle, strength, value = tf.unstack(tf.image.rgb_to_hsv(images - least), axis=-1)
    turned = tf.math.floormod(angle + delta[..., 0], 1.0)
    return tf.image.hsv_to_rgb(tf.stack([turned, strength, value], -1)) + least
