"""scikit-learn's 1,797 handwritten digits, written in three formats with one fixed train/eval split.

    OUT/
      dataset.json                         what this is, where it comes from, how it is split
      images/train/labels.txt              `0: 0` ... `9: 9`, one line a class
      images/train/<label>/<index>.png     28x28 grayscale PNG; index is the row in scikit-learn's set
      images/eval/...                      the same for evaluation
      idx/train-images-idx3-ubyte.gz       MNIST's names and format: train- to train, t10k- to evaluate
      idx/train-labels-idx1-ubyte.gz
      idx/t10k-images-idx3-ubyte.gz
      idx/t10k-labels-idx1-ubyte.gz
      tfrecord/train-00000-of-00001.tfrecord   tf.Example with slim's keys: image/encoded, image/format,
      tfrecord/eval-00000-of-00001.tfrecord    image/class/label, image/class/text, image/height, image/width
      tfrecord/labels.txt

The 8x8 originals (0..16) are scaled to 28x28 (0..255) with bicubic interpolation: the handwriting is real, the
resolution is MNIST's. The same installation writes the same bytes each time. The directory appears at once
or not at all.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moxserve.data.folder import check_formats, labels_text, publish_data_set, write_bytes
from moxserve.errors import MissingExtraError
from moxserve.file.idx import encode_idx

__all__ = [
    "EVAL_SAMPLES",
    "FORMATS",
    "IMAGE_SIZE",
    "LABELS",
    "Digits",
    "Split",
    "load_digits",
    "write_digits",
]

FORMATS = ("images", "idx", "tfrecord")
LABELS = tuple(str(digit) for digit in range(10))
IMAGE_SIZE = 28
EVAL_SAMPLES = 360
_SPLIT_SEED = 0
_IDX_PREFIX = {"train": "train", "eval": "t10k"}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Split:
    """One part of the data.

    Attributes:
        images: `[n, 28, 28] uint8`.
        labels: `[n] int64`, 0..9.
        indices: `[n] int64`, rows in scikit-learn's set, ascending.
        encoded: the same images as PNG bytes.
    """

    images: Array
    labels: Array
    indices: Array
    encoded: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Digits:
    """The whole set: 1,437 images to train on, 360 to evaluate with, classes in equal proportion in both."""

    train: Split
    eval: Split

    def splits(self) -> Mapping[str, Split]:
        """Return both parts by name."""
        return {"train": self.train, "eval": self.eval}


def load_digits() -> Digits:
    """Load, scale and split the digits.

    Raises:
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError("scikit-learn", "data", "the digits data set") from None
    source = bundled()
    labels = source.target.astype(np.int64)
    rows = np.arange(len(labels))
    train, evaluation = train_test_split(
        rows, test_size=EVAL_SAMPLES, stratify=labels, random_state=_SPLIT_SEED, shuffle=True
    )
    images, encoded = _scale(source.images)
    parts = [
        Split(images[part], labels[part], part, [encoded[row] for row in part])
        for part in (np.sort(train), np.sort(evaluation))
    ]
    return Digits(*parts)


def _scale(originals: Array) -> tuple[Array, list[bytes]]:
    """Turn `[n, 8, 8]` values 0..16 into `[n, 28, 28] uint8` and their PNG files."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "data", "the digits data set") from None
    images = np.empty((len(originals), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    encoded = []
    for row, original in enumerate(originals):
        small = Image.fromarray(np.round(original * (255 / 16)).astype(np.uint8))
        large = small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        images[row] = np.asarray(large)
        buffer = io.BytesIO()
        large.save(buffer, format="PNG")
        encoded.append(buffer.getvalue())
    return images, encoded


def write_digits(
    out: str | os.PathLike[str], formats: Sequence[str] = FORMATS, *, force: bool = False
) -> Mapping[str, Any]:
    """Write the digits under a directory, which appears complete or not at all.

    Args:
        out: the directory to make. It may exist when it is empty.
        formats: any of `images`, `idx`, `tfrecord`.
        force: replace an earlier data set at `out`. A directory that holds anything else is never replaced.

    Returns:
        What was written, as in `dataset.json`.

    Raises:
        UsageError: a format is unknown, or none was given.
        DataError: `out` is taken.
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    check_formats(formats, FORMATS)

    def make(folder: str) -> Mapping[str, Any]:
        digits = load_digits()
        for name in FORMATS:
            if name in formats:
                _WRITERS[name](digits, os.path.join(folder, name))
        return {
            "name": "digits",
            "source": "sklearn.datasets.load_digits (UCI optical recognition of handwritten digits)",
            "licence": "CC BY 4.0",
            "samples": {name: len(split) for name, split in digits.splits().items()},
            "image": {"height": IMAGE_SIZE, "width": IMAGE_SIZE, "channels": 1, "dtype": "uint8"},
            "labels": list(LABELS),
            "formats": [name for name in FORMATS if name in formats],
        }

    return publish_data_set(out, make, force=force)


def _write_images(digits: Digits, folder: str) -> None:
    for name, split in digits.splits().items():
        write_bytes(os.path.join(folder, name, "labels.txt"), labels_text(LABELS))
        for row, label, png in zip(split.indices, split.labels, split.encoded, strict=True):
            write_bytes(os.path.join(folder, name, LABELS[label], f"{row:04d}.png"), png)


def _write_idx(digits: Digits, folder: str) -> None:
    for name, split in digits.splits().items():
        prefix = _IDX_PREFIX[name]
        labels = split.labels.astype(np.uint8)
        write_bytes(os.path.join(folder, f"{prefix}-images-idx3-ubyte.gz"), encode_idx(split.images))
        write_bytes(os.path.join(folder, f"{prefix}-labels-idx1-ubyte.gz"), encode_idx(labels))


def _write_tfrecord(digits: Digits, folder: str) -> None:
    from moxserve.protocol.examples import make_example
    from moxserve.protocol.tfrecord import write_records

    write_bytes(os.path.join(folder, "labels.txt"), labels_text(LABELS))
    for name, split in digits.splits().items():
        records = (
            make_example(
                {
                    "image/encoded": [png],
                    "image/format": [b"png"],
                    "image/class/label": [int(label)],
                    "image/class/text": [LABELS[label].encode()],
                    "image/height": [IMAGE_SIZE],
                    "image/width": [IMAGE_SIZE],
                }
            ).SerializeToString(deterministic=True)
            for label, png in zip(split.labels, split.encoded, strict=True)
        )
        write_records(os.path.join(folder, f"{name}-00000-of-00001.tfrecord"), records)


_WRITERS: Mapping[str, Callable[[Digits, str], None]] = {
    "images": _write_images,
    "idx": _write_idx,
    "tfrecord": _write_tfrecord,
}
