"""Batches of decoded images with tf.data, in the graph that is current when input_fn is called."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from moxserve.cores import available_cores
from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle
from moxserve.pipeline.stage import first_line
from moxserve_plugins.image_folder.index import Folder, Index, index_folders
from moxserve_plugins.inputs import batch_rows, gather_rows

if TYPE_CHECKING:
    from moxserve_plugins.image_folder.config import ImageFolder

__all__ = ["bundle"]

_MIB = 1 << 20


def bundle(config: ImageFolder) -> InputBundle:
    """Index the folders and return the input: image `[batch, h, w, c] uint8`, label `[batch] int64`.

    Raises:
        DataError: a folder breaks the rules.
    """
    index = index_folders(config)
    folders = {mode: index.folders[part] for mode, part in _MODES.items() if part in index.folders}

    def input_fn(mode: str, **_: Any) -> Any:
        if mode not in folders:
            raise DataError(f"no images for {mode}: input.{_MODES[mode]}_dir is not set")
        return _batches(config, index, folders[mode], mode)

    return InputBundle(
        input_fn=input_fn,
        names=("image", "label"),
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        labels=index.labels,
        num_samples={mode: len(folder.files) for mode, folder in folders.items()},
        row_names={
            mode: [os.path.relpath(file, folder.path) for file in folder.files] for mode, folder in folders.items()
        },
        diagnose=lambda: _diagnose(index, resized=config.image_size is not None),
    )


_MODES = {"TRAIN": "train", "EVAL": "eval", "PREDICT": "eval"}


def _batches(config: ImageFolder, index: Index, folder: Folder, mode: str) -> Any:
    import tensorflow as tf

    rows = len(folder.files)
    files = tf.constant(list(folder.files))
    classes = tf.constant(list(folder.classes), tf.int64)

    def decode(number: Any) -> tuple[Any, Any]:
        return _decode(config, index.shape, tf.gather(files, number)), tf.gather(classes, number)

    if rows * math.prod(index.shape) <= config.cache_mb * _MIB:
        everything = tf.data.Dataset.range(rows).map(decode, num_parallel_calls=available_cores())
        table = everything.batch(rows, drop_remainder=True)
        return batch_rows(config, mode, rows, lambda numbers: gather_rows(table, numbers))

    def fetch(numbers: Any) -> Any:
        decoded = numbers.unbatch().map(decode, num_parallel_calls=available_cores())
        return decoded.batch(config.rows_per_step(mode), drop_remainder=mode == "TRAIN")

    return batch_rows(config, mode, rows, fetch)


def _decode(config: ImageFolder, shape: tuple[int, int, int], file: Any) -> Any:
    """Read one file: `[height, width, channels] uint8`, whatever it was."""
    import tensorflow as tf

    height, width, channels = shape
    image = tf.io.decode_image(tf.io.read_file(file), channels=channels, expand_animations=False)
    if config.image_size is None:
        return tf.ensure_shape(image, shape)
    # Without a batch dimension resize needs the rank, which decode_image does not tell.
    image.set_shape([None, None, channels])
    resized = tf.image.resize(image, [height, width], method=config.resize)
    return tf.cast(tf.clip_by_value(tf.round(tf.cast(resized, tf.float32)), 0, 255), tf.uint8)


def _diagnose(index: Index, resized: bool) -> str | None:
    """Look for the file that TensorFlow could not take."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        data = v1.placeholder(tf.string, [])
        image = tf.io.decode_image(data, channels=index.shape[2], expand_animations=False)
        for folder in index.folders.values():
            for file in folder.files:
                try:
                    with open(file, "rb") as f:
                        found = session.run(image, {data: f.read()}).shape
                except (tf.errors.InvalidArgumentError, OSError) as error:
                    return f"{file} cannot be decoded: {first_line(error)}"
                if not resized and found != index.shape:
                    expected = "x".join(map(str, index.shape))
                    got = "x".join(map(str, found))
                    return f"{file} is {got}, the first image {expected}; set input.image_size to resize all"
    return None
