"""Scenes of one to four real handwritten digits, as a multi-label image folder.

    OUT/
      dataset.json                          what this is, where it comes from, how it is split
      train/labels.txt                      `0: 0` ... `9: 9`, one line a class
      train/images/<number>.jpg             40x40 grayscale JPEG; 2,000 of them
      train/labels/<number>.jpg.txt         the digits in it, one a line, ascending
      eval/...                              the same for evaluation; 500 images

The handwriting is real (scikit-learn's digits), the scenes are composed: each digit has a place, a size and a label of
its own. Digits of the training scenes are in no evaluation scene. The same installation writes the same bytes each
time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from moxserve.data.digits import LABELS, Split, load_digits
from moxserve.data.folder import labels_text, publish_data_set, write_bytes
from moxserve.data.textures import jpeg_bytes
from moxserve.errors import MissingExtraError
from moxserve.file.labels import LABELS_FILE

__all__ = ["CANVAS_SIZE", "SAMPLES", "write_multidigits"]

SAMPLES: Mapping[str, int] = {"train": 2000, "eval": 500}
CANVAS_SIZE = 40
_SEED = 0
_CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))
_CELL = CANVAS_SIZE // 2
_SMALLEST = 15


def write_multidigits(out: str | os.PathLike[str], *, force: bool = False) -> Mapping[str, Any]:
    """Write the scenes under a directory, which appears complete or not at all.

    Args:
        out: the directory to make. It may exist when it is empty.
        force: replace an earlier data set at `out`. A directory that holds anything else is never replaced.

    Returns:
        What was written, as in `dataset.json`.

    Raises:
        DataError: `out` is taken.
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    return publish_data_set(out, _make, force=force)


def _make(folder: str) -> Mapping[str, Any]:
    for part, split in load_digits().splits().items():
        write_bytes(os.path.join(folder, part, LABELS_FILE), labels_text(LABELS))
        random = np.random.default_rng([_SEED, len(part)])
        for number in range(SAMPLES[part]):
            scene, found = _scene(split, random)
            name = f"{number:04d}.jpg"
            write_bytes(os.path.join(folder, part, "images", name), jpeg_bytes(scene))
            text = "\n".join(LABELS[label] for label in found)
            write_bytes(os.path.join(folder, part, "labels", f"{name}.txt"), text.encode())
    return {
        "name": "multidigits",
        "source": "scenes of sklearn.datasets.load_digits (UCI optical recognition of handwritten digits)",
        "licence": "CC BY 4.0",
        "samples": dict(SAMPLES),
        "image": {"height": CANVAS_SIZE, "width": CANVAS_SIZE, "channels": 1, "dtype": "uint8"},
        "labels": list(LABELS),
        "formats": list(SAMPLES),
    }


def _scene(split: Split, random: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Compose a scene: `[40, 40] uint8`, and its labels, each once, ascending."""
    canvas = np.zeros((CANVAS_SIZE, CANVAS_SIZE), np.uint8)
    count = int(random.integers(1, len(_CELLS) + 1))
    labels = sorted(random.choice(len(LABELS), count, replace=False).tolist())
    cells = random.permutation(len(_CELLS))[:count]
    for label, cell in zip(labels, cells, strict=True):
        glyph = split.images[random.choice(np.flatnonzero(split.labels == label))]
        size = int(random.integers(_SMALLEST, _CELL + 1))
        top, left = (_CELL * where + int(random.integers(_CELL - size + 1)) for where in _CELLS[cell])
        canvas[top : top + size, left : left + size] = _scale(glyph, size)
    return canvas, labels


def _scale(glyph: np.ndarray, size: int) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "data", "the multidigits data set") from None
    return np.asarray(Image.fromarray(glyph).resize((size, size), Image.Resampling.BICUBIC))
