"""Pipelines of tf.data as its guides have them: `input_tfdata.py THREADS BATCH PATHS_FILE`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import tensorflow as tf
from input_worker import serve

SIZE = 224


def _box(shape: Any) -> Any:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape, tf.zeros([0, 0, 4], tf.float32), aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0),
        min_object_covered=0.0, max_attempts=10, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    return begin, size


def _finish(image: Any, dtype: Any) -> Any:
    image = tf.image.random_flip_left_right(tf.image.resize(image, [SIZE, SIZE]))
    return tf.cast(image, tf.uint8) if dtype == tf.uint8 else (image - 127.5) / 127.5


def _crop(image: Any) -> Any:
    begin, size = _box(tf.shape(image))
    return tf.slice(image, begin, size)


def naive(path: Any, dtype: Any) -> Any:
    """Decode all, crop, resize, flip."""
    return _finish(_crop(tf.io.decode_jpeg(tf.io.read_file(path), channels=3)), dtype)


def fused(path: Any, dtype: Any) -> Any:
    """Decode only the crop's part."""
    data = tf.io.read_file(path)
    begin, size = _box(tf.image.extract_jpeg_shape(data))
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    return _finish(tf.image.decode_and_crop_jpeg(data, window, channels=3), dtype)


class Pipelines:
    """Endless iterators of batches, by what they do."""

    def __init__(self, paths: list[str], threads: int, batch: int) -> None:
        self.paths, self.threads, self.batch = paths, threads, batch

    def _shuffled(self, dataset: Any) -> Any:
        return dataset.shuffle(len(self.paths), reshuffle_each_iteration=True).repeat()

    def _files(self) -> Any:
        return self._shuffled(tf.data.Dataset.from_tensor_slices(self.paths))

    def _run(self, dataset: Any) -> Iterator[Any]:
        options = tf.data.Options()
        options.deterministic = False
        options.threading.private_threadpool_size = self.threads
        batches = dataset.batch(self.batch, drop_remainder=True).prefetch(2).with_options(options)
        return iter(batches)

    def map(self, function: Any, dtype: Any) -> Iterator[Any]:
        """Each file through a function."""
        return self._run(self._files().map(lambda path: function(path, dtype), num_parallel_calls=self.threads))

    def cached(self, dtype: Any) -> Iterator[Any]:
        """Decoded once, kept in memory; cropped in each epoch."""
        decoded = tf.data.Dataset.from_tensor_slices(self.paths).map(
            lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3), num_parallel_calls=self.threads
        )
        # Row numbers would be cheaper to shuffle than images, but what is cached can only be read in order.
        kept = decoded.cache().shuffle(128).repeat()
        return self._run(kept.map(lambda image: _finish(_crop(image), dtype), num_parallel_calls=self.threads))

    def bytes(self) -> Iterator[Any]:
        """Files as they are."""
        return self._run(self._files().map(tf.io.read_file, num_parallel_calls=self.threads))


if __name__ == "__main__":
    made = Pipelines(Path(sys.argv[3]).read_text().splitlines(), int(sys.argv[1]), int(sys.argv[2]))
    serve({
        "naive_uint8": lambda: made.map(naive, tf.uint8),
        "naive_float32": lambda: made.map(naive, tf.float32),
        "fused_uint8": lambda: made.map(fused, tf.uint8),
        "fused_float32": lambda: made.map(fused, tf.float32),
        "cached_uint8": lambda: made.cached(tf.uint8),
        "bytes": made.bytes,
    })  # fmt: skip
