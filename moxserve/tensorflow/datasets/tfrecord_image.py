"""Images with one class each in TFRecord files: `ImageClassificationTFRecordDataset`.

Source: MoXing apidoc §2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from moxserve.errors import UsageError
from moxserve.tensorflow.datasets.progressive import ProgressiveImagenetDataset
from moxserve.tensorflow.datasets.raw.options import OnBadImage, RawOptions
from moxserve.tensorflow.datasets.tfrecord_common import (
    BaseTFRecordMetadata,
    RecordDataset,
    feature_spec,
    read_metadata,
)
from moxserve.tensorflow.datasets.tfrecord_decode import RecordImages
from moxserve.tensorflow.datasets.tfrecord_reader import Reading
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["ImageClassificationTFRecordDataset", "ProgressiveImagenetDataset"]


class ImageClassificationTFRecordDataset(RecordDataset):
    """Images with one class each, from TFRecord files.

    Items: `image`, `label` (int64, or with `label_one_hot` `[num_classes] float32`), `label_desc` (the class' name: the
    record's `image/class/text`, else that of the file of labels), `image_name` (the record's `image/filename`, empty
    without), and the custom features by their keys. Without `preprocess_fn` and `augmentation_fn` the image is
    `[height, width, channels] uint8`; JPEG, PNG, BMP, GIF and WebP are told by content.

    With a `batch_size` and an augmentation of ours for training (`mox.get_data_augmentation_fn`), only the part of the
    image that the crop takes is decoded, into uint8, and colours are changed where the model runs. Other augmentations
    are mapped over the decoded images. For the order of records see `BaseTFRecordDataset`.

    Args:
        metadata: the files, and the classes.
        batch_size: images of a batch; it needs `image_size`, `preprocess_fn` or `augmentation_fn`.
        shuffle: another exact permutation each epoch.
        shuffle_buffer_size: as `BaseTFRecordDataset`.
        num_parallel: reads and decodes at once; never more decodes than there are cores.
        num_epochs: how often the data set is read; None for no end.
        cache_dir: as `BaseTFRecordDataset`.
        preprocess_fn: takes `image_name`, the encoded `image_buf`, `label` and `label_desc`, and returns the four with
            the image decoded; in place of decoding and resizing. With a `batch_size` it gets batches.
        image_size: height and width that images are resized to by nearest neighbours; a number is both.
        remove_cache_on_finish: as `BaseTFRecordDataset`.
        private_num_threads: as `BaseTFRecordDataset`.
        custom_feature_keys: names of further features, each an item; a standard key gets another form by this.
        custom_feature_values: what each is: `tf.io.FixedLenFeature`, `VarLenFeature`, ...
        drop_remainder: leave out a last batch that is smaller.
        augmentation_fn: takes one decoded image `[height, width, channels]`, never a batch, and returns it augmented.
            If it has a parameter `seed`, that is `[2] int64`, made of the seed and the position, as
            `tf.image.stateless_random_...` take it.
        label_one_hot: labels as `[num_classes] float32`.
        seed: of the order, and of the random windows; None draws one.
        shard: number of this worker, from 0, and how many there are; None: those of the run in TRAIN, else all rows.
        on_bad_image: an image that cannot be decoded is left out with a counted warning that names the record (`skip`)
            or an error (`raise`).
        on_bad_record: a record whose checksum differs is an error (`raise`) or left out with a counted warning.
        exact_shuffle: as `BaseTFRecordDataset`.
        position: as `BaseTFRecordDataset`.
        channels: 1 (gray), 3 (colour) or 4 (colour and alpha).
        capacity: how many images are decoded ahead of those that are taken, besides those that are under way.
        meta: another name of `metadata`, which the document's example uses.

    Raises:
        UsageError: an argument is out of its range, or labels cannot be one-hot since nobody says how many classes
            there are.
        DataError: a file is damaged, or there are no records.
    """

    def __init__(
        self,
        metadata: BaseTFRecordMetadata | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        shuffle_buffer_size: int = 6400,
        num_parallel: int = 8,
        num_epochs: int | None = None,
        cache_dir: str | None = None,
        preprocess_fn: Callable[..., Any] | None = None,
        image_size: Any = None,
        remove_cache_on_finish: bool = True,
        private_num_threads: int = 0,
        custom_feature_keys: Sequence[str] | None = None,
        custom_feature_values: Sequence[Any] | None = None,
        drop_remainder: Any = False,
        augmentation_fn: Callable[..., Any] | None = None,
        label_one_hot: bool = False,
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        on_bad_image: OnBadImage = "skip",
        on_bad_record: Literal["raise", "skip"] = "raise",
        exact_shuffle: bool = True,
        position: int = 0,
        channels: int = 3,
        capacity: int = 256,
        meta: BaseTFRecordMetadata | None = None,
    ) -> None:
        if (metadata is None) == (meta is None):
            raise UsageError("expected one of metadata and meta")
        self.metadata: BaseTFRecordMetadata = metadata or meta  # type: ignore[assignment]
        shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
        reading = Reading(shuffle, shuffle_buffer_size, num_parallel, num_epochs, seed, shard, on_bad_record, position)
        options = RawOptions(
            batch_size=batch_size,
            num_epochs=num_epochs,
            preprocess_fn=preprocess_fn,
            preprocess_threads=num_parallel,
            image_size=image_size,
            private_num_threads=private_num_threads,
            drop_remainder=drop_remainder,
            augmentation_fn=augmentation_fn,
            on_bad_image=on_bad_image,
            channels=channels,
            capacity=capacity,
        )
        custom = feature_spec(custom_feature_keys, custom_feature_values)
        if label_one_hot and not getattr(self.metadata, "num_classes", 0):
            raise UsageError(
                "label_one_hot=True, but the number of classes is not known",
                hint="give the metadata num_classes, or write a labels.txt beside the files",
            )
        records = read_metadata(self.metadata, reading, cache_dir, remove_cache_on_finish, exact_shuffle)
        images = RecordImages(self.metadata, options, custom, bool(label_one_hot), seed, reading.skipped)
        super().__init__(images.build(records), images.finish)
        self._log = images.log

    @property
    def num_bad_images(self) -> int:
        """How many different images were left out until now."""
        return len(self._log.names)
