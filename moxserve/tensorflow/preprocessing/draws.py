"""Random numbers of an augmentation: of TensorFlow's random operations, or of a seed that is given with the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["Draws"]


class Draws:
    """The draws for one image, or one batch.

    Args:
        seed: `[2]` integers: the same ones give the same numbers, in whatever order images are augmented. None: numbers
            of random operations, which follow the graph's seed and the order in which they run.
    """

    def __init__(self, seed: Any = None) -> None:
        self._seed = None if seed is None else tf.convert_to_tensor(seed)
        self._count = 0

    def uniform(self, shape: Sequence[Any], lower: Any, upper: Any, dtype: Any = None) -> Any:
        """Draw uniformly from [lower, upper).

        Args:
            shape: of the result.
            lower: least value.
            upper: above the largest.
            dtype: None: float32.
        """
        dtype = dtype or tf.float32
        if self._seed is None:
            return tf.random.uniform(shape, lower, upper, dtype)
        return tf.random.stateless_uniform(shape, self._next(), lower, upper, dtype)

    def integer(self, upper: Any) -> Any:
        """Draw one of 0, 1, ..., upper - 1: a scalar `int32`."""
        return self.uniform([], 0, upper, tf.int32)

    def flipped(self, image: Any) -> Any:
        """Mirror an image left to right half of the time."""
        if self._seed is None:
            return tf.image.random_flip_left_right(image)
        return tf.image.stateless_random_flip_left_right(image, self._next())

    def part(self, shape: Any, boxes: Any, **options: Any) -> Any:
        """Draw a part of an image with `sample_distorted_bounding_box`.

        Args:
            shape: `[3]` of the image.
            boxes: `[1, boxes, 4]` that it covers.
            **options: of the operation.

        Returns:
            Begin and size, for `tf.slice`, and the part as a box.
        """
        if self._seed is not None:
            return tf.image.stateless_sample_distorted_bounding_box(shape, boxes, seed=self._next(), **options)
        # The operation does not take the graph's seed by itself, as others do.
        seed, seed2 = tf1.get_seed(None)
        return tf1.image.sample_distorted_bounding_box(shape, boxes, seed=seed, seed2=seed2, **options)

    def _next(self) -> Any:
        self._count += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._count)
