"""What is in an image folder: classes, files, labels. No TensorFlow, no image is decoded.

    base_dir/label_0/*.png|*.jpg|*.jpeg       one folder a class, its name is the label
    base_dir/labels.txt                       optional: `0: label_0`, one line a class

labels.txt decides which index a label has. It must name each class folder exactly once, with the indices 0, 1, 2, ... .
Without it the folders' names are sorted as text, so `label_10` comes before `label_2`; the labels travel with the
exported model, so that a client need not know. Folders and files that start with a dot, and files that are no images,
are left out. Training and evaluation must agree on the labels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moxserve.errors import DataError, did_you_mean
from moxserve.file import exists, scan_dir
from moxserve.file.labels import LABELS_FILE, check_folders, read_labels
from moxserve_plugins.image_folder.header import image_shape

if TYPE_CHECKING:
    from moxserve_plugins.image_folder.config import ImageFolder

__all__ = ["Folder", "Index", "index_folders", "read_labels"]

EXTENSIONS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Folder:
    """One folder of classes.

    Attributes:
        path: the folder.
        labels: class names by index.
        files: paths of all images, by class and then by name.
        classes: index of the class of each file.
    """

    path: str
    labels: tuple[str, ...]
    files: Sequence[str]
    classes: Sequence[int]


@dataclass(frozen=True)
class Index:
    """All folders of an input.

    Attributes:
        folders: by `train` and `eval`; at least one.
        labels: class names by index, the same in all folders.
        shape: height, width and channels that every image is given.
    """

    folders: Mapping[str, Folder]
    labels: tuple[str, ...]
    shape: tuple[int, int, int]


def index_folders(config: ImageFolder, problems: list[tuple[str, str]] | None = None) -> Index:
    """Index the folders of a configuration.

    Args:
        config: the parameters.
        problems: when given, takes what is wrong as pairs of a field and a message, before the first is raised.

    Raises:
        DataError: a folder breaks the rules, or the folders do not agree.
    """
    found: list[tuple[str, str]] = []
    folders: dict[str, Folder] = {}
    for part, path in (("train", config.train_dir), ("eval", config.eval_dir)):
        if path is None:
            continue
        try:
            folders[part] = _index(path, part, config.classes)
        except DataError as error:
            found.append((f"{part}_dir", error.message))
    if len(folders) == 2 and folders["train"].labels != folders["eval"].labels:
        found.append(("eval_dir", _disagreement(folders["train"], folders["eval"])))
    if found:
        if problems is None:
            raise DataError("; ".join(message for _, message in found))
        problems += found
        return Index(folders, (), (0, 0, 0))
    first = next(iter(folders.values()))
    return Index(folders, first.labels, _shape(config, first.files[0]))


def _shape(config: ImageFolder, file: str) -> tuple[int, int, int]:
    if config.image_size is not None and config.channels is not None:
        return (*config.image_size, config.channels)
    height, width, channels = image_shape(file)
    size = config.image_size or (height, width)
    return (*size, config.channels or channels)


def _index(path: str, part: str, chosen: Sequence[str] | None) -> Folder:
    names = sorted(entry.name for entry in scan_dir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{path!r} holds no class folder; expected {path}/<label>/*.png or *.jpg")
    labels = _chosen(_labels(path, names), path, chosen)
    files: list[str] = []
    classes: list[int] = []
    for index, label in enumerate(labels):
        images = _images(os.path.join(path, label))
        # Evaluation may lack a class; training one that is empty is a mistake.
        if not images and part == "train":
            raise DataError(f"class folder {os.path.join(path, label)!r} holds no image ({', '.join(EXTENSIONS)})")
        files += images
        classes += [index] * len(images)
    if not files:
        raise DataError(f"{path!r} holds no image ({', '.join(EXTENSIONS)}) in its class folders")
    return Folder(path, labels, files, classes)


def _chosen(labels: tuple[str, ...], path: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes that are asked for, in that order; None is for all."""
    if chosen is None:
        return labels
    for label in chosen:
        if label not in labels:
            raise DataError(f"{path!r} has no class {label!r}, which classes names; {did_you_mean(label, labels)}")
    if len(set(chosen)) != len(chosen):
        raise DataError(f"classes names one of {', '.join(chosen)} twice")
    return tuple(chosen)


def _images(folder: str) -> list[str]:
    return sorted(
        os.path.join(folder, entry.name)
        for entry in scan_dir(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
    )


def _labels(path: str, folders: Sequence[str]) -> tuple[str, ...]:
    file = os.path.join(path, LABELS_FILE)
    if not exists(file):
        return tuple(folders)
    labels = read_labels(file)
    check_folders(labels, folders, path, file)
    return labels


def _disagreement(train: Folder, evaluation: Folder) -> str:
    if set(train.labels) != set(evaluation.labels):
        only = [f"{label!r} only in {train.path}" for label in train.labels if label not in evaluation.labels]
        only += [f"{label!r} only in {evaluation.path}" for label in evaluation.labels if label not in train.labels]
        return f"training and evaluation have different classes: {', '.join(only[:4])}"
    pairs = zip(train.labels, evaluation.labels, strict=True)
    index, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index} is {a!r} in {train.path} and {b!r} in {evaluation.path}; give both the same {LABELS_FILE}"
