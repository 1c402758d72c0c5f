"""TFRecord files read with slim's decoders: `get_tfrecord`.

Source: MoXing guide §3.2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moxserve.tensorflow.contrib.slim.item_handler import ItemHandler
from moxserve.tensorflow.contrib.slim.tfexample_decoder import TFExampleDecoder
from moxserve.tensorflow.datasets.tfrecord_common import BaseTFRecordMetadata, RecordDataset, finished, read_metadata
from moxserve.tensorflow.datasets.tfrecord_reader import Reading
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["DecodedTFRecordDataset", "get_tfrecord"]


class DecodedTFRecordDataset(RecordDataset):
    """The items of a slim decoder; `get_tfrecord` makes it.

    Args:
        dataset: of dicts item -> tensor.
        metadata: the files.
    """

    def __init__(self, dataset: Any, metadata: BaseTFRecordMetadata) -> None:
        super().__init__(dataset)
        self.metadata = metadata


def get_tfrecord(
    dataset_dir: str | os.PathLike[str],
    file_pattern: str | Sequence[str],
    keys_to_features: Mapping[str, Any],
    items_to_handlers: Mapping[str, ItemHandler],
    num_samples: int | None = None,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_readers: int = 8,
    shuffle_buffer_size: int = 6400,
    batch_size: int | None = None,
    drop_remainder: bool = False,
    cache_dir: str | None = None,
    remove_cache_on_finish: bool = True,
    private_num_threads: int = 0,
    redirect_dir: str | None = None,
    *,
    seed: int | None = None,
    shard: tuple[int, int] | None = None,
    on_bad_record: Literal["raise", "skip"] = "raise",
    exact_shuffle: bool = True,
    position: int = 0,
) -> DecodedTFRecordDataset:
    """Read TFRecord files with slim's decoder.

        keys_to_features = {"image/encoded": tf.io.FixedLenFeature([], tf.string), ...}
        items_to_handlers = {"image": slim.tfexample_decoder.Image(shape=[28, 28, 1], channels=1), ...}
        dataset = mox.get_tfrecord("/data", "*.tfrecord", keys_to_features, items_to_handlers)
        image, label = dataset.get(["image", "label"])

    Args:
        dataset_dir: folder of the files; `s3://` and `obs://`, too.
        file_pattern: of their names, or a list of patterns.
        keys_to_features: what each feature is: `tf.io.FixedLenFeature`, `VarLenFeature`, ...
        items_to_handlers: how each item is made of features, see `contrib.slim.tfexample_decoder`.
        num_samples: how many records there are, where that is known; they are then not counted.
        shuffle: another exact permutation each epoch.
        num_epochs: how often the files are read; None for no end.
        num_readers: reads and decodes at once.
        shuffle_buffer_size: as `BaseTFRecordDataset`.
        batch_size: records of a batch; None: the items are those of one record.
        drop_remainder: leave out a last batch that is smaller.
        cache_dir: as `BaseTFRecordDataset`.
        remove_cache_on_finish: as `BaseTFRecordDataset`.
        private_num_threads: as `BaseTFRecordDataset`.
        redirect_dir: as `BaseTFRecordMetadata`.
        seed: of the order.
        shard: number of this worker, from 0, and how many there are; None: those of the run in TRAIN, else all rows.
        on_bad_record: `raise`, or `skip` with a counted warning.
        exact_shuffle: as `BaseTFRecordDataset`.
        position: as `BaseTFRecordDataset`.

    Raises:
        UsageError: an argument is out of its range, or a handler needs a feature that is not read.
        DataError: no file matches, a file is damaged, or there are no records.
    """
    decoder = TFExampleDecoder(keys_to_features, items_to_handlers)
    metadata = BaseTFRecordMetadata(dataset_dir, file_pattern, num_samples, redirect_dir)
    shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
    reading = Reading(shuffle, shuffle_buffer_size, num_readers, num_epochs, seed, shard, on_bad_record, position)
    records = read_metadata(metadata, reading, cache_dir, remove_cache_on_finish, exact_shuffle)
    items = decoder.list_items()

    def decode(element: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(items, decoder.decode(element["record"]), strict=True))

    samples = records.map(decode, num_parallel_calls=num_readers, deterministic=True)
    return DecodedTFRecordDataset(finished(samples, batch_size, drop_remainder, private_num_threads), metadata)
