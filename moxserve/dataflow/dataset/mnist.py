"""MNIST and data sets of its format: four IDX files, gzip-compressed or not."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from moxserve.dataflow.dataset.files import check_part, default_folder, find
from moxserve.dataflow.format import RowsData
from moxserve.errors import DataError
from moxserve.file.idx import read_idx

__all__ = ["FashionMnist", "Mnist"]

_PREFIX = {"train": "train", "test": "t10k"}


class Mnist(RowsData):
    """Images and labels: `[image float32 [28, 28] from 0 to 1, label int]`.

    Args:
        train_or_test: `train` or `test`.
        shuffle: in another order each pass.
        dir: folder with `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz`, `t10k-images-idx3-ubyte.gz` and
            `t10k-labels-idx1-ubyte.gz`, or their uncompressed forms. None: where tensorpack keeps `mnist_data`.

    Raises:
        UsageError: there is no such part.
        MoxFileNotExistsException: a file is missing; says which are expected where.
        DataError: a file is damaged, or images and labels do not belong together.
    """

    _folder: ClassVar[str] = "mnist_data"

    def __init__(self, train_or_test: str, shuffle: bool = True, dir: str | None = None) -> None:
        super().__init__(shuffle)
        name = type(self).__name__
        prefix = _PREFIX[check_part(name, train_or_test)]
        folder = default_folder(self._folder) if dir is None else dir
        files = [f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        paths = [find(name, folder, (f"{file}.gz", file)) for file in files]
        self.images, self.labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(self.images) != len(self.labels):
            raise DataError(f"{paths[0]!r} has {len(self.images)} images, {paths[1]!r} {len(self.labels)} labels")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def _row(self, number: int) -> list[Any]:
        return [np.multiply(self.images[number], 1.0 / 255.0, dtype=np.float32), int(self.labels[number])]


class FashionMnist(Mnist):
    """Fashion-MNIST; everything as Mnist, in `fashion_mnist_data`."""

    _folder = "fashion_mnist_data"

    def get_label_names(self) -> list[str]:
        """Return what the labels mean."""
        return [
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ]
