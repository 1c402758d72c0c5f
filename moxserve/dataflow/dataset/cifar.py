"""CIFAR-10 and CIFAR-100, from their binary form: a record is its labels (one byte each), then 32 x 32 red, green and
blue bytes. The form for Python is a pickle, and not read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from moxserve.dataflow.dataset.files import check_part, default_folder, find
from moxserve.dataflow.format import RowsData
from moxserve.errors import DataError
from moxserve.file import read

__all__ = ["Cifar10", "Cifar100"]

_PIXELS = 3 * 32 * 32
_PARTS = ("train", "test")


class _Cifar(RowsData):
    _default: ClassVar[str]
    _inside: ClassVar[str]
    _label_bytes: ClassVar[int]
    _files: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, train_or_test: str, shuffle: bool | None = None, dir: str | None = None) -> None:
        part = check_part(type(self).__name__, train_or_test)
        super().__init__(part == "train" if shuffle is None else shuffle)
        self._dir = default_folder(self._default) if dir is None else dir
        self.images, self.labels = self._read(part)

    def _read(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        name, size = type(self).__name__, self._label_bytes + _PIXELS
        records = []
        for file in self._files[part]:
            path = find(name, self._dir, (file, os.path.join(self._inside, file)))
            data = read(path, binary=True)
            if not data or len(data) % size:
                raise DataError(
                    f"{path!r} is no file of {name}, or is cut off: {len(data)} bytes, not a multiple of {size}"
                )
            records.append(np.frombuffer(data, np.uint8).reshape(-1, size))
        rows = np.concatenate(records)
        # The last label is the fine one.
        labels = rows[:, self._label_bytes - 1]
        planes = rows[:, self._label_bytes :].reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def _row(self, number: int) -> list[Any]:
        return [self.images[number], int(self.labels[number])]

    def get_per_pixel_mean(self, names: Sequence[str] = _PARTS) -> np.ndarray:
        """Return the mean of all images: `[32, 32, 3] float32`.

        Args:
            names: the parts that count.

        Raises:
            MoxFileNotExistsException: the files of a part are missing.
        """
        images = np.concatenate([self._read(check_part(type(self).__name__, part))[0] for part in names])
        return np.asarray(images.mean(axis=0, dtype=np.float64), np.float32)

    def get_per_channel_mean(self, names: Sequence[str] = _PARTS) -> np.ndarray:
        """Return the mean of all pixels: `[3] float32`.

        Args:
            names: the parts that count.

        Raises:
            MoxFileNotExistsException: the files of a part are missing.
        """
        return np.asarray(self.get_per_pixel_mean(names).mean(axis=(0, 1), dtype=np.float64), np.float32)


class Cifar10(_Cifar):
    """Images and labels: `[image uint8 [32, 32, 3] RGB, label int]`.

    Args:
        train_or_test: `train` or `test`.
        shuffle: in another order each pass; None shuffles `train` only.
        dir: folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or with `cifar-10-batches-bin`
            that holds them. None: where tensorpack keeps `cifar10_data`.

    Raises:
        UsageError: there is no such part.
        MoxFileNotExistsException: a file is missing; says which are expected where.
        DataError: a file is cut off, or something else.
    """

    _default = "cifar10_data"
    _inside = "cifar-10-batches-bin"
    _label_bytes = 1
    _files: ClassVar = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}


class Cifar100(_Cifar):
    """Images and fine labels: `[image uint8 [32, 32, 3] RGB, label int]`.

    Args:
        train_or_test: `train` or `test`.
        shuffle: in another order each pass; None shuffles `train` only.
        dir: folder with `train.bin` and `test.bin`, or with `cifar-100-binary` that holds them. None: where tensorpack
            keeps `cifar100_data`.

    Raises:
        UsageError: there is no such part.
        MoxFileNotExistsException: a file is missing; says which are expected where.
        DataError: a file is cut off, or something else.
    """

    _default = "cifar100_data"
    _inside = "cifar-100-binary"
    _label_bytes = 2
    _files: ClassVar = {"train": ("train.bin",), "test": ("test.bin",)}
