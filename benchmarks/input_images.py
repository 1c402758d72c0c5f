"""Real JPEGs for `benchmarks/input.py`: crops of the photographs that ship with scikit-image and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

__all__ = ["write_images"]

_SKIMAGE = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg",
    "hubble_deep_field.jpg", "retina.jpg",
)  # fmt: skip
_SKLEARN = ("china.jpg", "flower.jpg")


def write_images(folder: Path, count: int = 600, quality: int = 90, seed: int = 0) -> list[str]:
    """Write JPEGs of about 500 x 375 (4:2:0), ten class folders; return their paths.

    Args:
        folder: made if missing; files that are there already are kept.
        count: how many.
        quality: of the JPEGs.
        seed: of the crops.
    """
    import skimage
    import sklearn.datasets

    sources = [Path(skimage.__file__).parent / "data" / name for name in _SKIMAGE]
    sources += [Path(sklearn.datasets.__file__).parent / "images" / name for name in _SKLEARN]
    photos = [photo for photo in (cv2.imread(str(path), cv2.IMREAD_COLOR) for path in sources) if photo is not None]
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        which = number % len(photos)
        path = folder / f"class_{which}" / f"{number:05d}.jpg"
        height, width = int(rng.integers(345, 406)), int(rng.integers(480, 521))
        crop = _crop(photos[which], height, width, rng)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), crop, [cv2.IMWRITE_JPEG_QUALITY, quality])
        paths.append(str(path))
    return paths


def _crop(photo: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    # A photograph that is too small is enlarged, by at most a third.
    scale = max(1.0, height / photo.shape[0], width / photo.shape[1])
    if scale > 1:
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top = int(rng.integers(0, photo.shape[0] - height + 1))
    left = int(rng.integers(0, photo.shape[1] - width + 1))
    return photo[top : top + height, left : left + width]
