"""MNIST-format data, read as `tensorflow.examples.tutorials.mnist.input_data` did: `read_data_sets(folder,
one_hot=True)`.

The folder holds MNIST's four gzip-compressed IDX files.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np

from moxserve.errors import DataError
from moxserve.file import exists
from moxserve.file.idx import read_idx
from moxserve.tensorflow.datasets.raw.storage import data_folder

__all__ = ["DataSet", "Datasets", "read_data_sets"]

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"

# MNIST's own split: 5,000 of 60,000 training images; smaller sets keep the proportion.
_VALIDATION = 5000
_VALIDATION_PART = 12


class DataSet:
    """Images and labels in memory, given out in batches.

    Args:
        images: `[n, rows, columns] uint8`.
        labels: `[n] uint8`, or `[n, classes] float64` one-hot.
        reshape: flatten the images to `[n, rows * columns]`; otherwise they are `[n, rows, columns, 1]`.
        seed: of the shuffling; None for a new order each time.

    Attributes:
        images: float32 in [0, 1].
        labels: as given.
        epochs_completed: how often `next_batch` went through all rows.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, reshape: bool = True, seed: int | None = None) -> None:
        if len(images) != len(labels):
            raise DataError(f"there are {len(images)} images, but {len(labels)} labels")
        shape = (len(images), math.prod(images.shape[1:])) if reshape else (*images.shape, 1)
        self.images: np.ndarray = np.multiply(images.reshape(shape), 1.0 / 255.0, dtype=np.float32)
        self.labels = labels
        self.epochs_completed = 0
        self._random = np.random.default_rng(seed)
        self._order = np.arange(len(images))
        self._position = 0

    @property
    def num_examples(self) -> int:
        """Number of rows."""
        return len(self.images)

    def next_batch(
        self, batch_size: int, fake_data: bool = False, shuffle: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give the next rows; a batch may reach from one epoch into the next.

        Args:
            batch_size: how many rows.
            fake_data: kept for the original's callers; only False has a meaning.
            shuffle: order each epoch anew.

        Returns:
            Images and labels, `batch_size` rows each.

        Raises:
            DataError: the set is empty, or fake data is asked for.
        """
        if fake_data or not self.num_examples:
            raise DataError("next_batch: fake data is not made" if fake_data else "next_batch: the data set is empty")
        rows: list[np.ndarray] = []
        missing = batch_size
        while missing:
            if self._position == 0 and shuffle:
                self._random.shuffle(self._order)
            taken = self._order[self._position : self._position + missing].copy()
            rows.append(taken)
            missing -= len(taken)
            self._position += len(taken)
            if self._position == self.num_examples:
                self._position = 0
                self.epochs_completed += 1
        chosen = np.concatenate(rows)
        return self.images[chosen], self.labels[chosen]


class Datasets(NamedTuple):
    """The three parts of a data set."""

    train: DataSet
    validation: DataSet
    test: DataSet


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    if len(labels) and labels.max() >= classes:
        raise DataError(f"there is a label {labels.max()} in the data, too large for num_classes={classes}")
    return np.eye(classes)[labels]


def read_data_sets(
    train_dir: str,
    fake_data: bool = False,
    one_hot: bool = False,
    reshape: bool = True,
    validation_size: int | None = None,
    seed: int | None = None,
    num_classes: int = 10,
) -> Datasets:
    """Read the four IDX files of a folder.

    Args:
        train_dir: the folder; nothing is downloaded.
        fake_data: kept for the original's callers; only False has a meaning.
        one_hot: labels as `[n, classes]` instead of `[n]`.
        reshape: images as `[n, 784]` instead of `[n, 28, 28, 1]`.
        validation_size: training images that are set apart; default 5,000, or a twelfth of a set that is smaller
            than MNIST.
        seed: of the shuffling.
        num_classes: width of one-hot labels.

    Raises:
        DataError: a file is missing or broken, a label exceeds `num_classes`, or `validation_size` the training images.
    """
    if fake_data:
        raise DataError("read_data_sets(fake_data=True): fake data is not made")
    names = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
    folder = data_folder(train_dir, "train_dir")
    paths = [os.path.join(folder, name) for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if not exists(path)]:
        raise DataError(f"{train_dir!r} lacks {', '.join(missing)}", hint=f"the folder needs {', '.join(names)}")
    images, labels, test_images, test_labels = map(read_idx, paths)
    if one_hot:
        labels, test_labels = _one_hot(labels, num_classes), _one_hot(test_labels, num_classes)
    size = min(_VALIDATION, len(images) // _VALIDATION_PART) if validation_size is None else validation_size
    if not 0 <= size <= len(images):
        raise DataError(f"validation_size={size}: expected 0 to {len(images)}, the number of training images")
    return Datasets(
        train=DataSet(images[size:], labels[size:], reshape, seed),
        validation=DataSet(images[:size], labels[:size], reshape, seed),
        test=DataSet(test_images, test_labels, reshape, seed),
    )
