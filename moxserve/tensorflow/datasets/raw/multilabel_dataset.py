"""Data sets of image files, each with a text file of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moxserve.dataflow.order import EpochOrder
from moxserve.tensorflow.datasets.raw.multilabel_metadata import MultilabelClassificationRawMetadata
from moxserve.tensorflow.datasets.raw.options import OnBadImage, RawOptions
from moxserve.tensorflow.datasets.raw.pipeline import RawImageDataset
from moxserve.tensorflow.datasets.raw.source import LabelForm, RawSource
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["MultilabelClassificationRawDataset", "MultilabelClassificationRawMetadata"]


class MultilabelClassificationRawDataset(RawImageDataset):
    r"""Images, each with any number of labels.

        metadata = mox.MultilabelClassificationRawMetadata(base_dir="/data/scenes")
        dataset = mox.MultilabelClassificationRawDataset(metadata, batch_size=32, image_size=[224, 224])
        image, label = dataset.get(["image", "label"])

    Items, order, bad images, windows and arguments are those of `ImageClassificationRawDataset`, but:

    * `label` is `[num_classes] float32`: 1 for each label that the image has, else 0, as sigmoid losses take it;
    * `label_desc` is the text of the label file, without blanks at its ends;
    * `image_name` is relative to the folder of images.

    Source: MoXing apidoc §2. The arguments after `augmentation_fn` are ours.

    Args:
        metadata: which images and labels there are.
        batch_size: see `ImageClassificationRawDataset`, as all that is not listed here.
        num_readers: see there.
        num_epochs: see there.
        shuffle: see there.
        shuffle_buffer_size: see there.
        capacity: see there.
        cache_dir: see there.
        preprocess_fn: see there.
        preprocess_threads: see there.
        image_size: see there.
        remove_cache_on_finish: see there.
        private_num_threads: see there.
        reader_class: see there.
        reader_kwargs: see there.
        drop_remainder: see there.
        label_sep: what is between labels in a label file; `\n` by default. Blanks around labels do not count. Where
            the metadata, or an earlier data set with the same metadata, were given one, that is meant by the default,
            and no third one can be given.
        skip_label_not_found: leave out images that have no label file, instead of raising a DataError that names one.
        augmentation_fn: see there.
        seed: see there.
        shard: see there.
        position: see there.
        on_bad_image: see there.
        channels: see there.
        cache_decoded: see there.

    Raises:
        UsageError: an argument makes no sense, or images of unknown size shall be a batch.
        DataError: the data set breaks the rules, a label file is missing, or the shard has no image.
    """

    def __init__(
        self,
        metadata: MultilabelClassificationRawMetadata,
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
        label_sep: str = "\n",
        skip_label_not_found: bool = False,
        augmentation_fn: Callable[..., Any] | None = None,
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        position: int = 0,
        on_bad_image: OnBadImage = "skip",
        channels: int = 3,
        cache_decoded: bool = False,
    ) -> None:
        options = RawOptions.pick(locals())
        metadata.use_separator(label_sep)
        samples = metadata.select(skip_label_not_found)
        shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
        order = EpochOrder(len(samples), bool(shuffle), seed, shard)
        label = LabelForm(metadata.num_classes, hot=True)
        super().__init__(RawSource(metadata.base_dir, samples, order, label, options), seed)
        self.metadata = metadata
