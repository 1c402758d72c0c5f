"""ImageNet (ILSVRC 2012), and any data set in its layout: a folder a part, with a folder a class in it, or with a list.

train/n01440764/*.JPEG        the label is the place of the class' folder in the order of their names
val/*.JPEG and val.txt        a list: file name, blank, label, a line for each image
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow
from moxserve.dataflow.common import MapDataComponent
from moxserve.dataflow.dataset.files import check_part
from moxserve.dataflow.format import RowsData
from moxserve.errors import DataError, UsageError
from moxserve.file import MoxFileNotExistsException, read
from moxserve.images.decode import decode
from moxserve.images.names import is_image

__all__ = ["ILSVRC12", "ILSVRC12Files"]

_PARTS = ("train", "val", "test")


class ILSVRC12Files(RowsData):
    """Paths and labels: `[path, label int]`.

    Args:
        dir: folder with `train`, `val` and `test`.
        name: `train`, `val` or `test`.
        meta_dir: folder with lists, such as `val.txt`. A list goes before the folders of classes. None looks in `dir`.
        shuffle: in another order each pass; None shuffles `train` only.
        dir_structure: `original` (the images of `val` and `test` lie in one folder, and need a list) or `train` (they
            lie in folders of classes). None: a list where there is one, folders of classes elsewhere.

    Raises:
        UsageError: there is no such part, or no such structure.
        MoxFileNotExistsException: the folder or its list is missing.
        DataError: a line of the list is damaged, or there are no images.
    """

    def __init__(
        self,
        dir: str,
        name: str,
        meta_dir: str | None = None,
        shuffle: bool | None = None,
        dir_structure: str | None = None,
    ) -> None:
        check_part("ILSVRC12", name, _PARTS)
        if dir_structure not in (None, "original", "train"):
            raise UsageError(f"ILSVRC12: dir_structure={dir_structure!r}: expected 'original', 'train' or None")
        super().__init__(name == "train" if shuffle is None else shuffle)
        folder, listed = os.path.join(dir, name), os.path.join(dir if meta_dir is None else meta_dir, f"{name}.txt")
        if not os.path.isdir(folder):
            raise MoxFileNotExistsException(
                f"ILSVRC12: expected the images of {name!r} in {folder!r}, which is no folder"
            )
        needs_list = dir_structure == "original" and name != "train"
        if needs_list and not os.path.isfile(listed):
            raise MoxFileNotExistsException(
                f"ILSVRC12: expected the list {listed!r}: a line 'file label' for each image of {folder!r}",
                hint="put the list there, or give dir_structure='train' if the images lie in folders of classes",
            )
        use_list = os.path.isfile(listed) and dir_structure != "train"
        self.datapoints = _from_list(folder, listed) if use_list else _from_folders(folder)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.datapoints)

    def _row(self, number: int) -> list[Any]:
        return list(self.datapoints[number])


def _from_list(folder: str, path: str) -> Sequence[tuple[str, int]]:
    found = []
    for number, line in enumerate(read(path).splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not name or not label.isdecimal():
            raise DataError(f"{path}:{number}: expected a file name, a blank and a label, got {line!r}")
        found.append((os.path.join(folder, name.strip()), int(label)))
    if not found:
        raise DataError(f"{path} lists no images")
    return found


def _from_folders(folder: str) -> Sequence[tuple[str, int]]:
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = [
        (os.path.join(folder, name, file), label)
        for label, name in enumerate(classes)
        for file in sorted(os.listdir(os.path.join(folder, name)))
        if is_image(file)
    ]
    if not found:
        raise DataError(
            f"{folder} has no folders of classes with images",
            hint=f"images in one folder need a list beside it: {os.path.basename(folder)}.txt",
        )
    return found


class ILSVRC12(MapDataComponent):
    """Images and labels: `[image uint8 [height, width, 3] BGR, label int]`; BGR as in tensorpack.

    Args:
        dir: as ILSVRC12Files, and so are the others.
        name: the part.
        meta_dir: folder with lists.
        shuffle: in another order each pass.
        dir_structure: where the images lie.

    Raises:
        UsageError: there is no such part, or no such structure.
        MoxFileNotExistsException: the folder or its list is missing.
        DataError: there are no images; while it is iterated: an image that cannot be read, by name.
    """

    def __init__(
        self,
        dir: str,
        name: str,
        meta_dir: str | None = None,
        shuffle: bool | None = None,
        dir_structure: str | None = None,
    ) -> None:
        files: DataFlow = ILSVRC12Files(dir, name, meta_dir, shuffle, dir_structure)
        super().__init__(files, _read_bgr)


def _read_bgr(path: str) -> np.ndarray:
    return decode(read(path, binary=True), 3, path)[..., ::-1]
