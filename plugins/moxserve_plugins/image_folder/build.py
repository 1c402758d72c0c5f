"""Batches of decoded images with tf.data, in the graph that is current when input_fn is called."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.cores import available_cores
from moxserve.errors import DataError
from moxserve.file.filesystem import is_remote
from moxserve.pipeline.slots import InputBundle
from moxserve.pipeline.stage import first_line
from moxserve_plugins.image_folder.index import Folder, Index, index_folders
from moxserve_plugins.inputs import batch_rows, gather_rows

if TYPE_CHECKING:
    from moxserve_plugins.image_folder.config import ImageFolder

__all__ = ["bundle"]

_MIB = 1 << 20
# Files of a store that are asked for together, and how many such requests are under way.
_AT_ONCE = 64
_BATCHES_AHEAD = 2


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
    classes = tf.constant(list(folder.classes), tf.int64)

    def decode(number: Any, data: Any) -> tuple[Any, Any]:
        return _decode(config, index.shape, data), tf.gather(classes, number)

    def images(numbers: Any) -> Any:
        return _read(folder.files, numbers).map(decode, num_parallel_calls=available_cores())

    if rows * math.prod(index.shape) <= config.cache_mb * _MIB:
        table = images(tf.data.Dataset.range(rows).batch(_AT_ONCE)).batch(rows, drop_remainder=True)
        return batch_rows(config, mode, rows, lambda numbers: gather_rows(table, numbers))

    def fetch(numbers: Any) -> Any:
        return images(numbers).batch(config.rows_per_step(mode), drop_remainder=mode == "TRAIN")

    return batch_rows(config, mode, rows, fetch)


def _read(files: Sequence[str], batches: Any) -> Any:
    """Turn a dataset of batches of row numbers into one of single numbers, each with the content of its file."""
    import tensorflow as tf

    if not is_remote(files[0]):
        names = tf.constant(list(files))
        return batches.unbatch().map(
            lambda number: (number, tf.io.read_file(tf.gather(names, number))), num_parallel_calls=available_cores()
        )
    from moxserve.tensorflow.datasets.raw.storage import read_all
    from moxserve.tensorflow.executor.python_calls import python_function

    def contents(numbers: Any) -> Any:
        return np.array(read_all([files[number] for number in numbers]), object)

    def fetched(numbers: Any) -> tuple[Any, Any]:
        data = python_function(contents, [numbers], tf.string)
        data.set_shape(numbers.shape)
        return numbers, data

    return batches.map(fetched, num_parallel_calls=_BATCHES_AHEAD).unbatch()


def _decode(config: ImageFolder, shape: tuple[int, int, int], data: Any) -> Any:
    """Decode one image: `[height, width, channels] uint8`, whatever it was."""
    import tensorflow as tf

    height, width, channels = shape
    image = tf.io.decode_image(data, channels=channels, expand_animations=False)
    if config.image_size is None:
        return tf.ensure_shape(image, shape)
    # Without a batch dimension resize needs the rank, which decode_image does not tell.
    image.set_shape([None, None, channels])
    resized = tf.image.resize(image, [height, width], method=config.resize)
    return tf.cast(tf.clip_by_value(tf.round(tf.cast(resized, tf.float32)), 0, 255), tf.uint8)


def _diagnose(index: Index, resized: bool) -> str | None:
    """Look for the file that TensorFlow could not take."""
    import tensorflow as tf

    from moxserve.tensorflow.datasets.raw.storage import read_file

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        data = v1.placeholder(tf.string, [])
        image = tf.io.decode_image(data, channels=index.shape[2], expand_animations=False)
        for folder in index.folders.values():
            for file in folder.files:
                try:
                    found = session.run(image, {data: read_file(file)}).shape
                except (tf.errors.InvalidArgumentError, OSError) as error:
                    return f"{file} cannot be decoded: {first_line(error)}"
                if not resized and found != index.shape:
                    expected = "x".join(map(str, index.shape))
                    got = "x".join(map(str, found))
                    return f"{file} is {got}, the first image {expected}; set input.image_size to resize all"
    return None
