"""Data sets by their names: `get_dataset` and `get_dataset_meta`.

    mnist      its four IDX files, gzip-compressed or not; or slim's mnist_train.tfrecord, mnist_test.tfrecord
    cifar10    data_batch_1.bin ... data_batch_5.bin, test_batch.bin (also in cifar-10-batches-bin); or
               cifar10_train.tfrecord, cifar10_test.tfrecord
    flowers    flowers_train_00000-of-00005.tfrecord ..., flowers_validation_...; or a folder for each split
    imagenet   train-00000-of-01024 ..., validation-00000-of-00128 ...; or a folder for each split

A split may also be `<split>-*` or `<split>-*.tfrecord`, or a folder `<split>` of class folders; `test`, `validation`,
`val` and `eval` name the same one. Nothing is downloaded. Source: MoXing apidoc §4, example 1; the files are those of
TF-Slim's data sets and of the sets' own pages.
"""

from __future__ import annotations

import glob as _glob
import inspect
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.file import is_directory
from moxserve.file.idx import read_idx
from moxserve.tensorflow.datasets.arrays import ArrayDataset, LabelledImages
from moxserve.tensorflow.datasets.base import BaseDataset
from moxserve.tensorflow.datasets.raw.raw_dataset import ImageClassificationRawDataset, ImageClassificationRawMetadata
from moxserve.tensorflow.datasets.raw.storage import data_folder, is_remote, join, list_tree
from moxserve.tensorflow.datasets.tfrecord_common import ImageClassificationTFRecordMetadata
from moxserve.tensorflow.datasets.tfrecord_image import ImageClassificationTFRecordDataset
from moxserve.tensorflow.executor.epochs import HELD_OUT

__all__ = ["DatasetMeta", "get_dataset", "get_dataset_meta"]

_DIGITS = tuple(str(digit) for digit in range(10))
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
_CIFAR_SHAPE = (3, 32, 32)
_IDX = {"train": "train", "test": "t10k"}


class DatasetMeta(NamedTuple):
    """What is known of a data set without looking at its files.

    Attributes:
        name: its name.
        splits_to_sizes: how many samples each split has, as published; the split to train on is the first.
        num_classes: how many classes there are; ImageNet's 0 is the background, which no sample has.
        labels_to_names: names of the classes by index; empty where the records tell them.
        channels: of the images.
    """

    name: str
    splits_to_sizes: OrderedDict[str, int]
    num_classes: int
    labels_to_names: Mapping[int, str]
    channels: int


def _meta(name: str, sizes: Sequence[tuple[str, int]], num_classes: int, names: Sequence[str], channels: int) -> Any:
    return DatasetMeta(name, OrderedDict(sizes), num_classes, dict(enumerate(names)), channels)


_METAS: dict[str, DatasetMeta] = {
    meta.name: meta
    for meta in (
        _meta("mnist", [("train", 60000), ("test", 10000)], 10, _DIGITS, 1),
        _meta("cifar10", [("train", 50000), ("test", 10000)], 10, _CIFAR10, 3),
        _meta("flowers", [("train", 3320), ("validation", 350)], 5, _FLOWERS, 3),
        _meta("imagenet", [("train", 1281167), ("validation", 50000)], 1001, (), 3),
    )
}


def get_dataset_meta(name: str) -> DatasetMeta:
    """Return what is known of a data set.

        split_name_train, split_name_eval = mox.get_dataset_meta("mnist").splits_to_sizes.keys()

    Args:
        name: `mnist`, `cifar10`, `flowers` or `imagenet`.

    Raises:
        UsageError: there is no such data set.
    """
    if name not in _METAS:
        raise UsageError(f"no data set {name!r}; {did_you_mean(str(name), _METAS)}")
    return _METAS[name]


def get_dataset(name: str, split_name: str, dataset_dir: str, capacity: int = 256, **kwargs: Any) -> BaseDataset:
    """Read a data set.

        dataset = mox.get_dataset("mnist", "train", "/data/mnist", capacity=4000)
        image, label = dataset.get(["image", "label"])

    How many samples there are is what the files say (`dataset.num_samples`), or a flag (samples_per_epoch,
    samples_per_epoch_eval).

    Args:
        name: `mnist`, `cifar10`, `flowers` or `imagenet`.
        split_name: one of `get_dataset_meta(name).splits_to_sizes`.
        dataset_dir: folder of the files, see the module. TFRecord files and folders of images also in a bucket.
        capacity: how many samples are ready ahead of those that are taken, at most.
        **kwargs: of the reader: `batch_size`, `num_epochs`, `shuffle`, `drop_remainder`, `augmentation_fn`,
            `label_one_hot`, `seed`, `shard`, `position`, ... By default samples come one by one, without end, in
            another exact permutation each epoch.

    Raises:
        UsageError: there is no such data set or split, or no such argument.
        DataError: the files are not there, or damaged.
    """
    meta = get_dataset_meta(name)
    if split_name not in meta.splits_to_sizes and not (split_name in HELD_OUT and len(meta.splits_to_sizes) > 1):
        raise UsageError(f"{name} has no split {split_name!r}; {did_you_mean(str(split_name), meta.splits_to_sizes)}")
    folder = data_folder(dataset_dir, "dataset_dir")
    request = _Request(meta, "train" if split_name == "train" else "test", folder, {"capacity": capacity, **kwargs})
    for reader in (_remote,) if is_remote(folder) else (_idx, _cifar, _tfrecord, _folders):
        dataset = reader(request)
        if dataset is not None:
            return dataset
    raise DataError(_nothing(request), hint="the files that are known are listed in docs/datasets.md")


@dataclass(frozen=True)
class _Request:
    meta: DatasetMeta
    split: str
    folder: str
    options: Mapping[str, Any]

    @property
    def held_out(self) -> bool:
        """Whether models are not trained on it."""
        return self.split != "train"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names that the split goes by."""
        return HELD_OUT if self.held_out else ("train",)

    def make(self, maker: Callable[..., BaseDataset], source: Any, **more: Any) -> BaseDataset:
        """Make a data set, after a look at the names of the arguments."""
        known = list(inspect.signature(maker).parameters)[1:]
        for name in self.options:
            if name not in known:
                raise UsageError(f"get_dataset({self.meta.name!r}): no argument {name!r}; {did_you_mean(name, known)}")
        return maker(source, **{**more, **self.options})


def _nothing(request: _Request) -> str:
    what = f"{request.meta.name}: no files of the split {request.splits[0]!r} in {request.folder!r}"
    if not is_directory(request.folder):
        return f"{what}: there is no such folder"
    found = sorted(name for name in os.listdir(request.folder) if not name.startswith("."))
    return f"{what}; it has {', '.join(found[:8]) or 'nothing'}{' ...' if len(found) > 8 else ''}"


def _first(*paths: str) -> str | None:
    return next((path for path in paths if os.path.isfile(path)), None)


def _idx(request: _Request) -> BaseDataset | None:
    """Read MNIST's own files."""
    if request.meta.name != "mnist":
        return None
    start = os.path.join(request.folder, _IDX[request.split])
    images = _first(f"{start}-images-idx3-ubyte.gz", f"{start}-images-idx3-ubyte")
    labels = _first(f"{start}-labels-idx1-ubyte.gz", f"{start}-labels-idx1-ubyte")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise DataError(f"{request.folder!r} has {images or labels}, but not its {'labels' if images else 'images'}")
    data = LabelledImages(read_idx(images, 3)[..., np.newaxis], read_idx(labels, 1), _DIGITS, request.held_out)
    return request.make(ArrayDataset, data)


def _cifar(request: _Request) -> BaseDataset | None:
    """Read CIFAR-10's binary version: each image is a byte of its class, then its red, green and blue planes."""
    if request.meta.name != "cifar10":
        return None
    pattern = "data_batch_*.bin" if request.split == "train" else "test_batch.bin"
    escaped = _glob.escape(request.folder)
    paths = sorted(_glob.glob(os.path.join(escaped, pattern)))
    paths = paths or sorted(_glob.glob(os.path.join(escaped, "cifar-10-batches-bin", pattern)))
    if not paths:
        return None
    size = 1 + int(np.prod(_CIFAR_SHAPE))
    rows = []
    for path in paths:
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % size:
            raise DataError(
                f"{path!r} has {len(data)} bytes; expected a multiple of {size}: it is cut off, or no CIFAR"
            )
        rows.append(data.reshape(-1, size))
    whole = np.concatenate(rows)
    planes = whole[:, 1:].reshape(-1, *_CIFAR_SHAPE)
    return request.make(
        ArrayDataset, LabelledImages(planes.transpose(0, 2, 3, 1), whole[:, 0], _CIFAR10, request.held_out)
    )


def _tfrecord(request: _Request) -> BaseDataset | None:
    """Read TFRecord files with slim's features."""
    name = request.meta.name
    patterns = []
    for split in request.splits:
        patterns += [f"{name}_{split}.tfrecord", f"{name}_{split}_*.tfrecord", f"{split}-*-of-*", f"{split}-*.tfrecord"]
        patterns += [f"{split}.tfrecord"]
    escaped = _glob.escape(request.folder)
    if not is_remote(request.folder) and not any(_glob.glob(os.path.join(escaped, pattern)) for pattern in patterns):
        return None
    metadata = ImageClassificationTFRecordMetadata(request.folder, patterns)
    if not metadata.num_classes:
        names = [request.meta.labels_to_names[index] for index in sorted(request.meta.labels_to_names)]
        metadata.set_classes(request.meta.num_classes, names)
    return request.make(ImageClassificationTFRecordDataset, metadata, channels=request.meta.channels)


def _remote(request: _Request) -> BaseDataset | None:
    """Read what readers take from buckets: TFRecord files, and folders of images."""
    tree = list_tree(request.folder)
    for split in request.splits:
        if split in tree.folders:
            metadata = ImageClassificationRawMetadata(join(request.folder, split))
            return request.make(ImageClassificationRawDataset, metadata, channels=request.meta.channels)
    if any(name.endswith((".bin", "ubyte", "ubyte.gz")) for name in tree.files):
        raise DataError(
            f"{request.folder!r}: {request.meta.name}'s own files are read from local folders only",
            hint="copy them first, or use TFRecord files",
        )
    return _tfrecord(request)


def _folders(request: _Request) -> BaseDataset | None:
    """Read a folder of class folders for each split."""
    for split in request.splits:
        folder = os.path.join(request.folder, split)
        if is_directory(folder):
            metadata = ImageClassificationRawMetadata(folder)
            return request.make(ImageClassificationRawDataset, metadata, channels=request.meta.channels)
    return None
