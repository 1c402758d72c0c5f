"""Metadata of multi-label images: a text file for each image tells its labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.file import MoxFileNotExistsException
from moxserve.file.labels import LABELS_FILE
from moxserve.images.names import IMAGE_EXTENSIONS, is_image
from moxserve.tensorflow.datasets.raw.metadata import RawMetadata, Samples
from moxserve.tensorflow.datasets.raw.storage import Tree, join, list_tree, read_all
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.epochs import samples_in_files

__all__ = ["MultilabelClassificationRawMetadata"]

_SEPARATOR = "\n"


class MultilabelClassificationRawMetadata(RawMetadata):
    r"""Images in one folder, and for each a text file with its labels.

        base_dir/images/0.jpg
        base_dir/labels/0.jpg.txt     its labels, one a line (see `label_sep` of the data set)
        base_dir/labels.txt           optional: `0: label_i`, one line or one entry a class

    With a labels.txt every label must be in it; it may have labels that no image has. Without one the classes are all
    labels that are found, sorted as text. An empty label file means that the image has none of the labels. Source:
    MoXing apidoc §2.

    Args:
        base_dir: folder of the two folders; `s3://` and `obs://` too.
        images_sub_dir: folder of the images, in `base_dir`.
        labels_sub_dir: folder of the label files, in `base_dir`.
        labels_extension: what is appended to an image's name for the name of its label file; with or without a dot.
        redirect_dir: a folder with copies, as in `ImageClassificationRawMetadata`, below the same `images_sub_dir`.
            Label files are read from `base_dir`.
        labels_filename: name of the labels.txt in `base_dir`.
        label_sep: what is between labels in a label file. None leaves it to the data set, and is `\n` where the classes
            are asked for before there is a data set.

    Raises:
        UsageError: `label_sep` is no text, or empty.
        DataError: from every property and method: a folder is missing or holds no image, a file breaks the rules.
    """

    def __init__(
        self,
        base_dir: str,
        images_sub_dir: str = "images",
        labels_sub_dir: str = "labels",
        labels_extension: str = "txt",
        redirect_dir: str | None = None,
        labels_filename: str = LABELS_FILE,
        *,
        label_sep: str | None = None,
    ) -> None:
        super().__init__(base_dir, redirect_dir, labels_filename)
        if label_sep is not None:
            _check_separator(label_sep)
        self.images_sub_dir = images_sub_dir.strip("/")
        self.labels_sub_dir = labels_sub_dir.strip("/")
        self.labels_extension = labels_extension.lstrip(".")
        self.label_sep = label_sep

    @cached_property
    def _images(self) -> Tree:
        return self._subtree(self.images_sub_dir, "images_sub_dir")

    @cached_property
    def _label_files(self) -> Tree:
        return self._subtree(self.labels_sub_dir, "labels_sub_dir")

    def _subtree(self, folder: str, argument: str) -> Tree:
        path = join(self.base_dir, folder)
        try:
            return list_tree(path)
        except MoxFileNotExistsException:
            raise DataError(
                f"{argument}={folder!r}: no such folder: {path!r}; {did_you_mean(folder, self._tree.folders)}"
            ) from None

    @cached_property
    def _names(self) -> list[str]:
        names = [name for name in self._images.files if "/" not in name and is_image(name)]
        if not names:
            raise DataError(
                f"{self._images.base!r} holds no image", hint=f"names of images end in {', '.join(IMAGE_EXTENSIONS)}"
            )
        return names

    def _label_name(self, image: str) -> str:
        return f"{image}.{self.labels_extension}"

    @cached_property
    def _with_label(self) -> list[str]:
        return [name for name in self._names if self._label_name(name) in self._label_files]

    @cached_property
    def _texts(self) -> list[str]:
        """Contents of the label files that there are, in the order of `_with_label`."""
        paths = [join(self._label_files.base, self._label_name(name)) for name in self._with_label]
        return [_decode(data, path) for data, path in zip(read_all(paths), paths, strict=True)]

    @cached_property
    def _file(self) -> tuple[str, ...] | None:
        return self._labels_file(one_line=True)

    def _split(self, text: str) -> list[str]:
        return [label.strip() for label in text.split(self.label_sep or _SEPARATOR) if label.strip()]

    @property
    def labels_list(self) -> list[str]:
        """Names of the classes by index."""
        if self._file is not None:
            return list(self._file)
        found = sorted({label for text in self._texts for label in self._split(text)})
        if not found:
            raise DataError(f"no label in the {len(self._texts)} label files of {self._label_files.base!r}")
        return found

    @property
    def total_num_samples(self) -> int:
        """How many images there are, those without a label file included; or what samples_per_epoch(_eval) says."""
        return samples_in_files(len(self._names), self.base_dir)

    def use_separator(self, label_sep: str) -> None:
        """Take a data set's separator, unless there is one: from the constructor, or from an earlier data set.

        Raises:
            UsageError: there is another one, and this is not the default, so that somebody asks for both.
        """
        _check_separator(label_sep)
        if self.label_sep is None:
            self.label_sep = label_sep
        elif label_sep not in (self.label_sep, _SEPARATOR):
            raise UsageError(
                f"label_sep={label_sep!r}, and the metadata separate by {self.label_sep!r}",
                hint="make metadata of its own for each data set that separates labels in another way",
            )

    def select(self, skip_label_not_found: bool = False) -> Samples:
        """Return the samples that have a label file.

        Args:
            skip_label_not_found: leave out images that have no label file.

        Raises:
            DataError: an image has no label file and is not to be left out, or a label is not in labels.txt.
        """
        names = self._with_label
        self._tell_missing(skip_label_not_found)
        if not names:
            raise DataError(f"no image of {self._images.base!r} has a label file in {self._label_files.base!r}")
        indices = self.names_to_labels
        labels = [self._indices(name, text, indices) for name, text in zip(names, self._texts, strict=True)]
        paths, keys = self._files(self._images, names, self.images_sub_dir)
        return Samples(names, paths, keys, labels, [text.strip() for text in self._texts])

    def _tell_missing(self, skip: bool) -> None:
        if len(self._names) == len(self._with_label):
            return
        there = set(self._with_label)
        missing = [name for name in self._names if name not in there]
        first = join(self._label_files.base, self._label_name(missing[0]))
        if not skip:
            raise DataError(
                f"{len(missing)} of {len(self._names)} images of {self._images.base!r} have no label file, the first is"
                f" {missing[0]!r}: expected {first!r}",
                hint="skip_label_not_found=True leaves such images out",
            )
        tf1.logging.warning(
            "%d of %d images have no label file and are left out: %s ...", len(missing), len(self._names), first
        )

    def _indices(self, name: str, text: str, known: dict[str, int]) -> np.ndarray:
        labels: Sequence[str] = self._split(text)
        for label in labels:
            if label not in known:
                file = join(self._label_files.base, self._label_name(name))
                raise DataError(
                    f"{file}: label {label!r} is not in {join(self.base_dir, self.labels_filename)};"
                    f" {did_you_mean(label, known)}",
                    hint=f"labels are separated by {self.label_sep or _SEPARATOR!r}: is label_sep right?",
                )
        return np.asarray([known[label] for label in labels], np.int64)


def _check_separator(label_sep: str) -> None:
    if not isinstance(label_sep, str) or not label_sep:
        raise UsageError(
            f"label_sep={label_sep!r}: expected what is between two labels", hint=r"such as '\n', ' ' or ','"
        )


def _decode(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from None
