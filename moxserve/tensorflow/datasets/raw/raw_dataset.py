"""Data sets of image files in one folder a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moxserve.dataflow.order import EpochOrder
from moxserve.tensorflow.datasets.raw.metadata import ImageClassificationRawMetadata
from moxserve.tensorflow.datasets.raw.options import OnBadImage, RawOptions
from moxserve.tensorflow.datasets.raw.pipeline import RawImageDataset
from moxserve.tensorflow.datasets.raw.source import LabelForm, RawSource
from moxserve.tensorflow.datasets.raw.split import split_image_classification_dataset
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["ImageClassificationRawDataset", "ImageClassificationRawMetadata", "split_image_classification_dataset"]


class ImageClassificationRawDataset(RawImageDataset):
    """Images in one folder a class.

        metadata = mox.ImageClassificationRawMetadata(base_dir="/data/flowers/train")
        dataset = mox.ImageClassificationRawDataset(metadata, batch_size=32, image_size=[224, 224])
        image, label = dataset.get(["image", "label"])

    **Items.** `image`: `[height, width, channels] uint8`, or what `augmentation_fn` or `preprocess_fn` make of it;
    `label`: `int64` scalar, or `[num_classes] float32` with `label_one_hot`; `label_desc`: name of the class, string;
    `image_name`: path of the image relative to `base_dir`, string; with a `preprocess_fn` also `image_buf`, the file's
    content. With a `batch_size` each has a first dimension of that size more.

    **Order.** With `shuffle` each epoch is an exact permutation of all images, which follows from `seed` alone: with
    any number of readers and threads, and after a run went on, it is the same. Workers that are given the same seed and
    their `shard` read disjoint parts, which together are all images. Batches run on from one epoch into the next.

    **Bad images** (cut off, empty, no image at all, unreadable) are left out, counted, and named in the log; the images
    after them fill the batch. What an image is, is told by its content, not by its extension.

    **Windows.** With a `batch_size` and an `augmentation_fn` of `get_data_augmentation_fn` in TRAIN, only the windows
    that the augmentation wants are decoded, batch by batch, and its colours are computed where the model is.

    Source: MoXing apidoc §2. The arguments after `label_one_hot` are ours.

    Args:
        metadata: which images and labels there are.
        batch_size: images of a batch; None: the items are those of one image. Needs `image_size`, `preprocess_fn`, or
            an `augmentation_fn` that gives images of one size.
        num_readers: how many files are read at once, at most. Local files are read by the threads that decode them,
            which are no more than there are cores; `AsyncRawGenerator` sends four requests at once for each.
        num_epochs: how often all images are read; None for no end.
        shuffle: another order each epoch.
        shuffle_buffer_size: accepted as the original has it; the order is an exact permutation, which needs no buffer.
        capacity: how many files are read, and how many images are decoded, ahead of those that are taken. What is under
            way comes on top: the next batch, and two that are decoded; or a few images for each thread.
        cache_dir: local folder that keeps what was read once; `ENV` for the one that $DLS_LOCAL_CACHE_PATH names. It
            pays for files that are slow to read, and with `cache_decoded`.
        preprocess_fn: makes the items from the files' contents: called with the tensors `image_name`, `image_buf`,
            `label`, `label_desc` (with a first dimension of the batch if there is a `batch_size`), it returns the four
            `(image_name, image, label, label_desc)`. By default the image is decoded, and resized to `image_size`.
        preprocess_threads: how many threads decode and preprocess, at most; never more than there are cores.
        image_size: `[height, width]`, or one number: images are resized to it, nearest neighbour, before the
            `augmentation_fn`; what a `preprocess_fn` returns is resized, too. None: they are not resized.
        remove_cache_on_finish: remove what `cache_dir` got when the last data set of this process that uses it is gone,
            or the process ends; otherwise the next run finds it there.
        private_num_threads: if more than 0, the data set has its own pool of so many threads.
        reader_class: what reads the files: `ParallelReader` (the default for local files), `AsyncRawGenerator` (the
            default for buckets; good for slow network file systems, too), or a class of yours, see
            `datasets.reader.raw_reader`.
        reader_kwargs: keyword arguments of the reader, over `num_readers` and `capacity`.
        drop_remainder: leave out a last batch that is smaller.
        augmentation_fn: takes one image (never a batch) and returns one. If it has a parameter `seed`, that is `[2]
            int64`, made of the seed, the epoch and the image, as `tf.image.stateless_random_...` take it.
        label_one_hot: `[num_classes] float32` labels instead of indices.
        seed: of the order, and of all that is random; None draws one.
        shard: number of this worker, from 0, and how many there are; None: those of the run in TRAIN, else all rows.
        position: how many images this worker has passed, bad ones included: where to go on. `mox.run` tells it by
            itself.
        on_bad_image: `skip`, or `raise` a DataError.
        channels: of decoded images: 1 (gray), 3 (colour) or 4 (colour and alpha).
        cache_decoded: keep decoded images, as large as they were stored, in `cache_dir` instead of files.

    Raises:
        UsageError: an argument makes no sense, or images of unknown size shall be a batch.
        DataError: the data set breaks the rules, or the shard has no image.
    """

    def __init__(
        self,
        metadata: ImageClassificationRawMetadata,
        batch_size: int | None = None,
        num_readers: int = 8,
        num_epochs: int | None = None,
        shuffle: bool = True,
        shuffle_buffer_size: int = 16,
        capacity: int = 256,
        cache_dir: str | None = None,
        preprocess_fn: Callable[..., Any] | None = None,
        preprocess_threads: int = 12,
        image_size: Any = None,
        remove_cache_on_finish: bool = True,
        private_num_threads: int = 0,
        reader_class: Callable[..., Any] | None = None,
        reader_kwargs: Mapping[str, Any] | None = None,
        drop_remainder: Any = False,
        augmentation_fn: Callable[..., Any] | None = None,
        label_one_hot: bool = False,
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        position: int = 0,
        on_bad_image: OnBadImage = "skip",
        channels: int = 3,
        cache_decoded: bool = False,
    ) -> None:
        options = RawOptions.pick(locals())
        samples = metadata.samples
        shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
        order = EpochOrder(len(samples), bool(shuffle), seed, shard)
        label = LabelForm(metadata.num_classes, bool(label_one_hot))
        super().__init__(RawSource(metadata.base_dir, samples, order, label, options), seed)
        self.metadata = metadata
