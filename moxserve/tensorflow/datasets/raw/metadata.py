"""What is in a folder of images: which images, which classes. Nothing is decoded; folders are listed on first use.

    base_dir/label_0/*.jpg                    classification: one folder a class
    base_dir/images/*.jpg                     multi-label: all images in one folder,
    base_dir/labels/<image file name>.txt     and a text file for each
    base_dir/labels.txt                       optional in both: `0: label_0`, see `moxserve.file.labels`

Images are listed in `base_dir` only. With a `redirect_dir` each is read from the file of the same relative path and
size there, where there is one: a local copy, complete or not, of a data set in a bucket.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moxserve.errors import DataError
from moxserve.file import MoxFileNotExistsException
from moxserve.file.labels import LABELS_FILE, check_folders, parse_labels
from moxserve.images.cache import FileKey
from moxserve.images.names import IMAGE_EXTENSIONS, is_image
from moxserve.tensorflow.datasets.raw.storage import (
    Tree,
    data_folder,
    join,
    list_tree,
    plain_url,
    read_file,
)
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.epochs import samples_in_files

__all__ = ["ImageClassificationRawMetadata", "RawMetadata", "Samples"]


@dataclass(frozen=True)
class Samples:
    """The samples of a data set, in the order of their names; classes first where folders are classes.

    Attributes:
        names: of the images, relative to `base_dir` (classification) or to the folder of images (multi-label).
        paths: where each is read from.
        keys: which state of the file is meant, of objects in a bucket; None for local files.
        labels: class indices of each sample, one for classification.
        texts: `label_desc` of each.
    """

    names: Sequence[str]
    paths: Sequence[str]
    keys: Sequence[FileKey | None]
    labels: Sequence[np.ndarray]
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)


class RawMetadata:
    """What the metadata of all raw image data sets share.

    Args:
        base_dir: folder, or URL of a prefix in a bucket.
        redirect_dir: another folder whose files are read instead where it holds a copy: a file of the same relative
            path and size.
        labels_filename: name of the labels.txt in `base_dir`.
    """

    def __init__(self, base_dir: str, redirect_dir: str | None = None, labels_filename: str = LABELS_FILE) -> None:
        self.base_dir = data_folder(base_dir, "base_dir")
        self.redirect_dir = None if redirect_dir is None else plain_url(redirect_dir)
        self.labels_filename = labels_filename

    @property
    @abstractmethod
    def total_num_samples(self) -> int:
        """How many images there are."""

    @property
    @abstractmethod
    def labels_list(self) -> list[str]:
        """Names of the classes by index."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.labels_list)

    @property
    def labels_to_names(self) -> dict[int, str]:
        """Name of each class index."""
        return dict(enumerate(self.labels_list))

    @property
    def names_to_labels(self) -> dict[str, int]:
        """Index of each class name."""
        return {name: index for index, name in enumerate(self.labels_list)}

    @cached_property
    def _tree(self) -> Tree:
        try:
            return list_tree(self.base_dir)
        except MoxFileNotExistsException:
            raise DataError(f"base_dir {self.base_dir!r}: no such folder") from None

    def _labels_file(self, one_line: bool = False) -> tuple[str, ...] | None:
        """Read the labels.txt; None where there is none."""
        if self.labels_filename not in self._tree:
            return None
        path = join(self.base_dir, self.labels_filename)
        return parse_labels(read_file(path), path, one_line)

    def _files(self, tree: Tree, names: Sequence[str], folder: str = "") -> tuple[list[str], list[FileKey | None]]:
        """Return where each file is read from, and its key.

        Args:
            tree: what there is.
            names: files in it.
            folder: the tree's place in `base_dir`.
        """
        if self.redirect_dir is None:
            return [join(tree.base, name) for name in names], [tree.key(name) for name in names]
        other = join(self.redirect_dir, folder)
        try:
            copies = list_tree(other)
        except MoxFileNotExistsException:
            raise DataError(f"redirect_dir: no such folder: {other!r}") from None
        trees = [copies if name in copies and copies.size(name) == tree.size(name) else tree for name in names]
        copied = sum(chosen is copies for chosen in trees)
        tf1.logging.info("%d of %d files of %s are read from %s", copied, len(names), tree.base, other)
        paths = [join(chosen.base, name) for chosen, name in zip(trees, names, strict=True)]
        return paths, [chosen.key(name) for chosen, name in zip(trees, names, strict=True)]


class ImageClassificationRawMetadata(RawMetadata):
    """Images in one folder a class: `base_dir/<label>/*.jpg`.

    Which index a label has is told by labels.txt, which must name each class folder exactly once. Without it the names
    of the folders are sorted as text, so `label_10` comes before `label_2`; this is said in the log. Files that start
    with a dot, or whose names are not those of images, are left out. A class folder may be empty. Source: MoXing
    apidoc §2.

    Args:
        base_dir: folder of the class folders; `s3://` and `obs://` too.
        redirect_dir: a folder with copies: each image is read from there where it holds a file of the same relative
            path and size. What images and labels there are is decided by `base_dir` alone.
        labels_filename: name of the labels.txt in `base_dir`.

    Raises:
        DataError: from every property: a folder is missing or holds no image, or labels.txt breaks the rules.
    """

    @cached_property
    def _labels(self) -> list[str]:
        folders = self._tree.folders
        if not folders:
            raise DataError(
                f"{self.base_dir!r} holds no class folder", hint=f"expected {self.base_dir}/<label>/<image>.jpg"
            )
        labels = self._labels_file()
        if labels is None:
            tf1.logging.info(
                "%s has no %s: the %d class folders are numbered in the order of their names as text: %s",
                self.base_dir,
                self.labels_filename,
                len(folders),
                _shorten(folders),
            )
            return list(folders)
        check_folders(labels, folders, self.base_dir, join(self.base_dir, self.labels_filename))
        return list(labels)

    @cached_property
    def _names(self) -> list[str]:
        by_class: Mapping[str, list[str]] = {label: [] for label in self._labels}
        for name in self._tree.files:
            folder, sep, _ = name.partition("/")
            if sep and is_image(name):
                by_class[folder].append(name)
        if not any(by_class.values()):
            raise DataError(
                f"{self.base_dir!r} holds no image in its {len(by_class)} class folders",
                hint=f"names of images end in {', '.join(IMAGE_EXTENSIONS)}",
            )
        if empty := [label for label, names in by_class.items() if not names]:
            tf1.logging.warning("%s: no image in the class folders %s", self.base_dir, _shorten(empty))
        return [name for names in by_class.values() for name in names]

    @property
    def labels_list(self) -> list[str]:
        """Names of the classes by index."""
        return list(self._labels)

    @property
    def total_num_samples(self) -> int:
        """How many images there are, those that cannot be decoded included; or what samples_per_epoch(_eval) says."""
        return samples_in_files(len(self._names), self.base_dir)

    @cached_property
    def samples(self) -> Samples:
        """All samples, class by class."""
        labels = [name.partition("/")[0] for name in self._names]
        arrays = {label: np.asarray(index, np.int64) for label, index in self.names_to_labels.items()}
        paths, keys = self._files(self._tree, self._names)
        return Samples(self._names, paths, keys, [arrays[label] for label in labels], labels)


def _shorten(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
