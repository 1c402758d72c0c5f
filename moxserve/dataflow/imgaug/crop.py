"""Cropping and cutting out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import ImageAugmentor, PhotometricAugmentor
from moxserve.dataflow.imgaug.pixels import INTER_LINEAR, check_interval, half_open, saturate, shape2d
from moxserve.dataflow.imgaug.transform import CropTransform, ResizeTransform, Transform, TransformList
from moxserve.errors import UsageError

__all__ = [
    "CenterCrop",
    "GoogleNetRandomCropAndResize",
    "GoogleNetResize",
    "RandomCrop",
    "RandomCropRandomShape",
    "RandomCutout",
]

_ATTEMPTS = 10


def _room(img: Any, shape: tuple[int, int], augmentor: str) -> tuple[int, int]:
    """Return how far a crop can move down and right."""
    down, right = img.shape[0] - shape[0], img.shape[1] - shape[1]
    if down < 0 or right < 0:
        raise UsageError(
            f"{augmentor}: {shape[0]}x{shape[1]} pixels cannot be cut out of an image of {img.shape[0]}x{img.shape[1]}",
            hint="resize it first, for example with ResizeShortestEdge",
        )
    return down, right


class RandomCrop(ImageAugmentor):
    """Cut a window out, at a random place.

    Args:
        crop_shape: (height, width), or one side of a square.
    """

    def __init__(self, crop_shape: Any) -> None:
        self.crop_shape = shape2d(crop_shape, "crop_shape")

    def get_transform(self, img: Any) -> CropTransform:
        """Draw a place."""
        down, right = _room(img, self.crop_shape, "RandomCrop")
        return CropTransform(self.rng.randint(down + 1), self.rng.randint(right + 1), *self.crop_shape)


class CenterCrop(ImageAugmentor):
    """Cut the middle out.

    Args:
        crop_shape: (height, width), or one side of a square.
    """

    def __init__(self, crop_shape: Any) -> None:
        self.crop_shape = shape2d(crop_shape, "crop_shape")

    def get_transform(self, img: Any) -> CropTransform:
        """Find the place."""
        down, right = _room(img, self.crop_shape, "CenterCrop")
        return CropTransform(down // 2, right // 2, *self.crop_shape)


class RandomCropRandomShape(ImageAugmentor):
    """Cut a window of random size out, at a random place.

    Args:
        wmin: least width, in pixels.
        hmin: least height.
        wmax: largest width, inclusive; None: the image's.
        hmax: largest height.
        max_aspect_ratio: has no effect, as in tensorpack.
    """

    def __init__(
        self,
        wmin: int,
        hmin: int,
        wmax: int | None = None,
        hmax: int | None = None,
        max_aspect_ratio: float | None = None,
    ) -> None:
        self.hmin, self.wmin = shape2d((hmin, wmin), "(hmin, wmin)")
        check_interval("(wmin, wmax)", (wmin, wmin if wmax is None else wmax))
        check_interval("(hmin, hmax)", (hmin, hmin if hmax is None else hmax))
        self.wmax, self.hmax, self.max_aspect_ratio = wmax, hmax, max_aspect_ratio

    def get_transform(self, img: Any) -> CropTransform:
        """Draw size and place."""
        _room(img, (self.hmax or self.hmin, self.wmax or self.wmin), "RandomCropRandomShape")
        height = self.rng.randint(self.hmin, (self.hmax or img.shape[0]) + 1)
        width = self.rng.randint(self.wmin, (self.wmax or img.shape[1]) + 1)
        top, left = self.rng.randint(img.shape[0] - height + 1), self.rng.randint(img.shape[1] - width + 1)
        return CropTransform(top, left, height, width)


class GoogleNetRandomCropAndResize(ImageAugmentor):
    """Cut a part of random area and aspect ratio out and resize it (Szegedy et al., 1409.4842 section 6).

    Where none of ten draws fits, the middle is taken, after resizing the image to cover the target.

    Args:
        crop_area_fraction: smallest and largest part of the area.
        aspect_ratio_range: smallest and largest width / height; exchanged for half of the draws.
        target_shape: one side of the result, or (height, width).
        interp: cv2's interpolation.
    """

    def __init__(
        self,
        crop_area_fraction: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (0.75, 1.333),
        target_shape: Any = 224,
        interp: int = INTER_LINEAR,
    ) -> None:
        self.crop_area_fraction = check_interval("crop_area_fraction", crop_area_fraction, 0, 1)
        self.aspect_ratio_range = check_interval("aspect_ratio_range", aspect_ratio_range, 1e-6)
        self._target = shape2d(target_shape, "target_shape")
        self.target_shape, self.interp = target_shape, interp

    def get_transform(self, img: Any) -> Transform:
        """Draw part and place."""
        height, width = img.shape[:2]
        for _ in range(_ATTEMPTS):
            area = self.rng.uniform(*self.crop_area_fraction) * height * width
            ratio = self.rng.uniform(*self.aspect_ratio_range)
            w, h = math.floor(math.sqrt(area * ratio) + 0.5), math.floor(math.sqrt(area / ratio) + 0.5)
            if self.rng.uniform() < 0.5:
                w, h = h, w
            if 0 < h <= height and 0 < w <= width:
                crop = CropTransform(self.rng.randint(height - h + 1), self.rng.randint(width - w + 1), h, w)
                return TransformList([crop, ResizeTransform(h, w, *self._target, self.interp)])
        return self._middle(height, width)

    def _middle(self, height: int, width: int) -> Transform:
        target_h, target_w = self._target
        scale = max(target_h / height, target_w / width)
        h, w = max(target_h, round(height * scale)), max(target_w, round(width * scale))
        resize = ResizeTransform(height, width, h, w, self.interp)
        return TransformList([resize, CropTransform((h - target_h) // 2, (w - target_w) // 2, target_h, target_w)])


GoogleNetResize = GoogleNetRandomCropAndResize


class RandomCutout(PhotometricAugmentor):
    """Paint over a rectangle, at a random place in the image (DeVries and Taylor, 1708.04552).

    Args:
        h_range: height of the rectangle, in pixels, or (low, high) to draw it from, without high.
        w_range: likewise.
        fill: value of its pixels.
    """

    def __init__(self, h_range: Any, w_range: Any, fill: float = 0.0) -> None:
        self.h_range, self.w_range, self.fill = h_range, w_range, fill
        ranges = [(side, side + 1) if isinstance(side, int) else side for side in (h_range, w_range)]
        self._ranges = [half_open(*named) for named in zip(("h_range", "w_range"), ranges, strict=True)]

    def _get_augment_params(self, img: Any) -> tuple[int, int, int, int]:
        h, w = (self.rng.randint(*interval) for interval in self._ranges)
        down, right = _room(img, (h, w), "RandomCutout")
        return self.rng.randint(down + 1), self.rng.randint(right + 1), h, w

    def _augment(self, img: np.ndarray, params: tuple[int, int, int, int]) -> np.ndarray:
        top, left, h, w = params
        img = img.copy()
        img[top : top + h, left : left + w] = saturate(np.asarray(self.fill), img.dtype)
        return img
