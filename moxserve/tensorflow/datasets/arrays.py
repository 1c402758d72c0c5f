"""Small images in memory as a data set: MNIST's and CIFAR's own files, without decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.dataflow.order import EpochOrder
from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.datasets.base import BaseDataset, input_position, numbered_batches, rows_left
from moxserve.tensorflow.datasets.raw.options import RawOptions
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.epochs import samples_in_epoch
from moxserve.tensorflow.executor.python_calls import python_function
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["ArrayDataset", "LabelledImages"]

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size, and their classes.

    Attributes:
        images: `[n, height, width, channels] uint8`.
        labels: `[n]` integers.
        names: of the classes, by index.
        held_out: whether models are not trained on them.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    held_out: bool = False

    def __post_init__(self) -> None:
        """Check that they belong together."""
        if len(self.images) != len(self.labels):
            raise DataError(f"there are {len(self.images)} images, but {len(self.labels)} labels")
        if len(self.labels) and int(self.labels.max()) >= len(self.names):
            raise DataError(f"there is a label {self.labels.max()}; expected 0 to {len(self.names) - 1}")


class ArrayDataset(BaseDataset):
    """Images in memory. Items: `image` `[height, width, channels] uint8`, `label` int64, `label_desc`.

    Args:
        data: the images.
        batch_size: images of a batch; None: the items are those of one image.
        num_epochs: how often all images are read; None for no end.
        shuffle: another exact permutation each epoch.
        capacity: how many images are ready ahead of those that are taken, at most.
        drop_remainder: leave out a last batch that is smaller.
        augmentation_fn: takes one image and returns it augmented.
        label_one_hot: labels as `[num_classes] float32`.
        seed: of the order; None draws one.
        shard: number of this worker, from 0, and how many there are; None: those of the run in TRAIN, else all rows.
        position: how many images this worker was given before.

    Raises:
        DataError: there are no images for this worker.
        UsageError: an argument makes no sense.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int | None = None,
        num_epochs: int | None = None,
        shuffle: bool = True,
        capacity: int = 256,
        drop_remainder: Any = False,
        augmentation_fn: Any = None,
        label_one_hot: bool = False,
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        position: int = 0,
    ) -> None:
        channels = data.images.shape[-1]
        options = RawOptions(
            batch_size=batch_size,
            num_epochs=num_epochs,
            capacity=capacity,
            drop_remainder=drop_remainder,
            augmentation_fn=augmentation_fn,
            position=position,
            channels=channels,
            image_size=list(data.images.shape[1:3]),
        )
        shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
        order = EpochOrder(len(data.images), bool(shuffle), seed, shard)
        if not order.rows:
            raise DataError(f"worker {shard[0]} of {shard[1]} has no image: there are {len(data.images)} in all")
        self.data = data
        super().__init__(_samples(data, order, options, label_one_hot))

    @property
    def num_samples(self) -> int:
        """How many images there are, or what samples_per_epoch(_eval) says."""
        return samples_in_epoch(len(self.data.images), training=not self.data.held_out)

    @property
    def total_num_samples(self) -> int:
        """The same as `num_samples`."""
        return self.num_samples


def _samples(data: LabelledImages, order: EpochOrder, options: RawOptions, one_hot: bool) -> Any:
    names = np.array([name.encode() for name in data.names], object)
    shape = data.images.shape[1:]

    def take(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = data.labels[rows].astype(np.int64)
        return data.images[rows], labels, names[labels]

    def items(_: Any, rows: Any) -> dict[str, Any]:
        images, labels, texts = python_function(take, [rows], (tf.uint8, tf.int64, tf.string), stateful=False)
        images.set_shape([None, *shape])
        labels.set_shape([None])
        texts.set_shape([None])
        labels = tf.one_hot(labels, len(data.names), dtype=tf.float32) if one_hot else labels
        return {"image": images, "label": labels, "label_desc": texts}

    def augmented(element: dict[str, Any]) -> dict[str, Any]:
        image: Any = options.augmentation_fn(element["image"]) if options.augmentation_fn else element["image"]
        if not tf.is_tensor(image):
            raise UsageError(f"augmentation_fn returned a {type(image).__name__}; expected the image, a tensor")
        return {**element, "image": image}

    position = input_position(options.position)
    samples = numbered_batches(order, options.num_epochs, _ROWS_AT_ONCE, position).map(items).unbatch()
    count = rows_left(order, options.num_epochs, position)
    samples = samples.apply(tf.data.experimental.assert_cardinality(count))
    if options.augmentation_fn is not None:
        plain = tf.autograph.experimental.do_not_convert(augmented)
        samples = samples.map(plain, num_parallel_calls=options.threads, deterministic=True)
    if options.batch_size is None:
        return samples.prefetch(options.capacity)
    batches = samples.batch(options.batch_size, drop_remainder=options.full_batches)
    return batches.prefetch(max(1, options.capacity // options.batch_size))
