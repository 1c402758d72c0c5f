"""Six real textures as an image folder: tiles of the photographs and micrographs that scikit-image ships.

    OUT/
      dataset.json                   what this is, where it comes from, how it is split
      train/labels.txt               `0: brick` ... `5: retina`, one line a class
      train/<label>/<number>.jpg     96x96 RGB JPEG; 200 a class
      eval/...                       the same for evaluation; 50 a class

Each class is cut from one picture, so the data are real, but few: what is learned is this brick wall, not all of them.
Tiles of one part may overlap; the two parts come from separate strips of columns, so that no pixel is in both. The same
installation writes the same bytes each time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moxserve.data.folder import labels_text, publish_data_set, write_bytes
from moxserve.errors import MissingExtraError
from moxserve.file.labels import LABELS_FILE

__all__ = ["LABELS", "SAMPLES", "TILE_SIZE", "jpeg_bytes", "write_textures"]

# Class: the function of skimage.data, and what it shows.
_PICTURES = {
    "brick": ("brick", "a brick wall"),
    "grass": ("grass", "a lawn"),
    "gravel": ("gravel", "gravel"),
    "hubble": ("hubble_deep_field", "the Hubble eXtreme Deep Field"),
    "immunohistochemistry": ("immunohistochemistry", "stained tissue under a microscope"),
    "retina": ("retina", "the back of an eye"),
}
LABELS = tuple(_PICTURES)
SAMPLES: Mapping[str, int] = {"train": 200, "eval": 50}
TILE_SIZE = 96
_SEED = 0
_QUALITY = 90
# Of the columns of a picture, from the left, what training gets.
_TRAIN_PART = 0.7
# The picture of the retina has black corners, which show nothing.
_LEAST_MEAN = 8.0


def jpeg_bytes(image: np.ndarray) -> bytes:
    """Encode an image as the sample data sets do.

    Args:
        image: `[height, width] uint8` gray or `[height, width, 3] uint8` RGB.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "data", "sample images") from None
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _picture(label: str) -> np.ndarray:
    """Load the picture of a class: `[height, width, 3] uint8`."""
    try:
        from skimage import data
    except ImportError:
        raise MissingExtraError("scikit-image", "data", "the textures data set") from None
    picture = np.asarray(getattr(data, _PICTURES[label][0])())
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def _strip(picture: np.ndarray, part: str) -> np.ndarray:
    """Return the columns of a part."""
    border = int(picture.shape[1] * _TRAIN_PART)
    return picture[:, :border] if part == "train" else picture[:, border:]


def _tiles(strip: np.ndarray, count: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut tiles at random places that show something."""
    height, width = strip.shape[:2]
    while count:
        top, left = random.integers(height - TILE_SIZE + 1), random.integers(width - TILE_SIZE + 1)
        tile = strip[top : top + TILE_SIZE, left : left + TILE_SIZE]
        if tile.mean() >= _LEAST_MEAN:
            yield np.ascontiguousarray(tile)
            count -= 1


def write_textures(out: str | os.PathLike[str], *, force: bool = False) -> Mapping[str, Any]:
    """Write the textures under a directory, which appears complete or not at all.

    Args:
        out: the directory to make. It may exist when it is empty.
        force: replace an earlier data set at `out`. A directory that holds anything else is never replaced.

    Returns:
        What was written, as in `dataset.json`.

    Raises:
        DataError: `out` is taken.
        MissingExtraError: scikit-image or Pillow is not installed.
    """
    return publish_data_set(out, _make, force=force)


def _make(folder: str) -> Mapping[str, Any]:
    for part, count in SAMPLES.items():
        write_bytes(os.path.join(folder, part, LABELS_FILE), labels_text(LABELS))
        for index, label in enumerate(LABELS):
            random = np.random.default_rng([_SEED, index, len(part)])
            strip = _strip(_picture(label), part)
            for number, tile in enumerate(_tiles(strip, count, random)):
                write_bytes(os.path.join(folder, part, label, f"{number:03d}.jpg"), jpeg_bytes(tile))
    return {
        "name": "textures",
        "source": "pictures of skimage.data, cut into tiles: "
        + "; ".join(f"{label}: {name}, {shows}" for label, (name, shows) in _PICTURES.items()),
        "licence": "CC0 1.0 (brick, grass, gravel, retina); public domain (hubble, by NASA); no known copyright "
        "restrictions (immunohistochemistry, by the Center for Microscopy and Molecular Imaging)",
        "samples": {part: count * len(LABELS) for part, count in SAMPLES.items()},
        "image": {"height": TILE_SIZE, "width": TILE_SIZE, "channels": 3, "dtype": "uint8"},
        "labels": list(LABELS),
        "formats": list(SAMPLES),
    }
