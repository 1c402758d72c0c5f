"""What `moxserve data to-tfrecord` turns into tf.Examples: where its samples are, and how one of them is read.

    SRC/<class>/*.jpg                            a folder a class; with labels.txt, or classes sorted as text
    SRC/images/*, SRC/labels/<image>.txt         several labels an image: a line each
    SRC/<split>/...                              any of these in folders named train, eval, test, validation, val
    SRC.csv, SRC.tsv, each also with .gz         a column a feature
    SRC.npz                                      an array a feature, a row a sample

No TensorFlow, and no image is decoded: its bytes are copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import DataError
from moxserve.file.labels import LABELS_FILE, check_folders, parse_labels, read_labels
from moxserve.images.header import check_complete, read_header
from moxserve.images.names import IMAGE_EXTENSIONS, is_image
from moxserve.tabular.files import CsvFormat, csv_table

__all__ = ["SPLITS", "RecordSource", "find_record_sources"]

_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_INT64, _FLOAT32_MAX = np.iinfo(np.int64), float(np.finfo(np.float32).max)
SPLITS = ("train", "eval", "test", "validation", "val")


@dataclass(frozen=True)
class RecordSource:
    """The samples of one split.

    Attributes:
        split: its name; empty where the source is not split.
        count: how many samples there are.
        group: `[count]` what is kept in equal proportion when the samples are split, such as the class.
        labels: names of the classes by index; empty without classes.
        read: returns the features of a sample by its number; raises DataError for a bad image.
    """

    split: str
    count: int
    group: np.ndarray
    labels: tuple[str, ...]
    read: Callable[[int], Mapping[str, Any]]


def find_record_sources(path: str) -> list[RecordSource]:
    """Find out what is at a path.

    Raises:
        DataError: it is nothing of what the module lists, or breaks its rules.
    """
    if os.path.isfile(path):
        if path.lower().endswith(_TABLES):
            return [_csv(path)]
        if path.lower().endswith(".npz"):
            return [_npz(path)]
        raise DataError(f"{path!r}: expected a folder of images, a .csv, .tsv or .npz file")
    folders = _folders(path)
    if not folders:
        raise DataError(f"{path!r} has no folders: expected a folder a class, or images/ and labels/")
    if set(folders) <= set(SPLITS):
        return [_images(os.path.join(path, split), split) for split in SPLITS if split in folders]
    return [_images(path, "")]


def _visible(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {path!r}") from None


def _folders(path: str) -> list[str]:
    return [name for name in _visible(path) if os.path.isdir(os.path.join(path, name))]


def _pictures(path: str) -> list[str]:
    return [name for name in _visible(path) if is_image(name)]


def _images(path: str, split: str) -> RecordSource:
    folders = _folders(path)
    if {"images", "labels"} <= set(folders):
        return _multilabel(path, split)
    labels_file = os.path.join(path, LABELS_FILE)
    labels = tuple(folders)
    if os.path.exists(labels_file):
        labels = read_labels(labels_file)
        check_folders(labels, folders, path, labels_file)
    files = [(f"{name}/{file}", index) for index, name in enumerate(labels) for file in _pictures(f"{path}/{name}")]
    if not files:
        raise DataError(
            f"{path!r} has no images in its class folders", hint=f"images are {', '.join(IMAGE_EXTENSIONS)}"
        )

    def read(number: int) -> Mapping[str, Any]:
        name, index = files[number]
        return {**_picture(path, name), "image/class/label": [index], "image/class/text": [labels[index].encode()]}

    return RecordSource(split, len(files), np.array([index for _, index in files]), labels, read)


def _multilabel(path: str, split: str) -> RecordSource:
    files = [name for name in _pictures(os.path.join(path, "images"))]
    if not files:
        raise DataError(f"{os.path.join(path, 'images')!r} has no images")
    texts = [_labels_of(os.path.join(path, "labels", f"{name}.txt")) for name in files]
    labels_file = os.path.join(path, LABELS_FILE)
    labels = tuple(sorted({text for listed in texts for text in listed}))
    if os.path.exists(labels_file):
        with open(labels_file, "rb") as f:
            labels = parse_labels(f.read(), labels_file, one_line=True)
    index = {label: number for number, label in enumerate(labels)}
    for name, listed in zip(files, texts, strict=True):
        for text in listed:
            if text not in index:
                raise DataError(f"labels/{name}.txt: label {text!r} is not in {labels_file}")

    def read(number: int) -> Mapping[str, Any]:
        listed = texts[number]
        return {
            **_picture(path, f"images/{files[number]}"),
            "image/class/label": np.array([index[text] for text in listed], np.int64),
            "image/class/text": np.array([text.encode() for text in listed], object),
        }

    return RecordSource(split, len(files), np.zeros(len(files), int), labels, read)


def _labels_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as f:
            return [line.strip() for line in f if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path!r} is missing: each image needs a file of its labels") from None
    except UnicodeDecodeError:
        raise DataError(f"{path!r} is not UTF-8 text") from None


def _picture(base: str, name: str) -> dict[str, Any]:
    path = os.path.join(base, name)
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    header = read_header(data, path)
    check_complete(data, header, path)
    return {
        "image/encoded": [data],
        "image/format": [header.format.encode()],
        "image/filename": [name.encode()],
        "image/height": [header.height],
        "image/width": [header.width],
        "image/channels": [header.channels],
    }


def _csv(path: str) -> RecordSource:
    header, rows = csv_table(path, CsvFormat())
    if "" in header:
        raise DataError(f"{path}:1:{header.index('') + 1}: the column has no name, which a feature needs")
    lines, body = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}:{line}: has {len(row)} cells; expected {len(header)}: {', '.join(header[:8])}")
        lines.append(line)
        body.append(row)
    if not body:
        raise DataError(f"{path!r} has no rows; expected a header and at least one row")
    columns = {}
    for place, name in enumerate(header):
        columns[name] = _column([row[place] for row in body])
        for line, value in zip(lines, columns[name], strict=True):
            if isinstance(value, float) and _FLOAT32_MAX < abs(value) < float("inf"):
                raise DataError(f"{path}:{line}:{place + 1}: {value:g} is beyond float32, which features have")

    def read(number: int) -> Mapping[str, Any]:
        # An empty field is a missing value: a feature that is not there.
        return {name: [values[number]] for name, values in columns.items() if values[number] is not None}

    return RecordSource("", len(body), np.zeros(len(body), int), (), read)


def _column(fields: Sequence[str]) -> list[Any]:
    """Read a column as integers, else as floats, else as text; None where a field is empty."""
    text = [field.encode() if field else None for field in fields]
    # Python reads 1_000 as a number; nobody else does.
    for kind in () if any("_" in field for field in fields) else (int, float):
        try:
            values = [kind(field) if field else None for field in fields]
        except ValueError:
            continue
        # Integers of more than 64 bits are names of something: as floats they would lose digits.
        fits = kind is float or all(v is None or _INT64.min <= v <= _INT64.max for v in values)
        return values if fits else text
    return text


def _npz(path: str) -> RecordSource:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path!r} cannot be read as .npz: {error}") from error
    sizes = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(sizes.values())) != 1 or not all(sizes.values()):
        raise DataError(f"{path!r}: every array needs the same number of rows, at least one; they have {sizes}")

    def read(number: int) -> Mapping[str, Any]:
        return {name: np.atleast_1d(array[number]) for name, array in arrays.items()}

    count = next(iter(sizes.values()))
    return RecordSource("", count, np.zeros(count, int), (), read)
