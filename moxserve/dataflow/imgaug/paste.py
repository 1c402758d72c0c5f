"""Pasting an image onto a larger canvas."""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import ImageAugmentor
from moxserve.dataflow.imgaug.pixels import saturate, shape2d
from moxserve.dataflow.imgaug.transform import Transform, _check_size, _points
from moxserve.errors import UsageError

__all__ = ["BackgroundFiller", "CenterPaste", "ConstantBackgroundFiller", "PasteTransform", "RandomPaste"]


class BackgroundFiller:
    """Makes canvases; a subclass defines `_fill(background_shape, img)`."""

    def fill(self, background_shape: tuple[int, int], img: np.ndarray) -> np.ndarray:
        """Return a new canvas of the image's dtype and channels.

        Args:
            background_shape: (height, width).
            img: what will be pasted.
        """
        return self._fill(tuple(background_shape), img)

    def _fill(self, background_shape: Any, img: np.ndarray) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} defines no _fill")


class ConstantBackgroundFiller(BackgroundFiller):
    """A canvas of one value.

    Args:
        value: the value, or one for each channel.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def _fill(self, background_shape: Any, img: np.ndarray) -> np.ndarray:
        canvas = np.empty((*background_shape, *img.shape[2:]), img.dtype)
        canvas[:] = saturate(np.asarray(self.value), img.dtype)
        return canvas


class PasteTransform(Transform):
    """Paste at a place.

    Args:
        y0: first row on the canvas.
        x0: first column on the canvas.
        size: (height, width) of the image.
        background_shape: (height, width) of the canvas.
        filler: makes the canvas.
    """

    def __init__(
        self,
        y0: int,
        x0: int,
        size: tuple[int, int],
        background_shape: tuple[int, int],
        filler: BackgroundFiller,
    ) -> None:
        self.y0, self.x0, self.size = y0, x0, size
        self.background_shape, self._filler = background_shape, filler

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Paste."""
        _check_size(img, *self.size, "a paste")
        canvas = self._filler.fill(self.background_shape, img)
        canvas[self.y0 : self.y0 + img.shape[0], self.x0 : self.x0 + img.shape[1]] = img
        return canvas

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move."""
        points = _points(coords)
        return points + np.array([self.x0, self.y0], points.dtype)


class CenterPaste(ImageAugmentor):
    """Paste into the middle.

    Args:
        background_shape: (height, width) of the canvas, or one side of a square.
        background_filler: makes the canvas; None: zeros.
    """

    def __init__(self, background_shape: Any, background_filler: BackgroundFiller | None = None) -> None:
        self.background_shape = shape2d(background_shape, "background_shape")
        self.background_filler = ConstantBackgroundFiller(0) if background_filler is None else background_filler

    def get_transform(self, img: Any) -> PasteTransform:
        """Choose a place."""
        down, right = self.background_shape[0] - img.shape[0], self.background_shape[1] - img.shape[1]
        if down < 0 or right < 0:
            raise UsageError(
                f"{type(self).__name__}: an image of {img.shape[0]}x{img.shape[1]} pixels does not fit onto "
                f"{self.background_shape[0]}x{self.background_shape[1]}"
            )
        y0, x0 = self._place(down, right)
        return PasteTransform(y0, x0, (img.shape[0], img.shape[1]), self.background_shape, self.background_filler)

    def _place(self, down: int, right: int) -> tuple[int, int]:
        return down // 2, right // 2


class RandomPaste(CenterPaste):
    """Paste at a random place.

    Args:
        background_shape: (height, width) of the canvas, or one side of a square.
        background_filler: makes the canvas; None: zeros.
    """

    def _place(self, down: int, right: int) -> tuple[int, int]:
        return self.rng.randint(down + 1), self.rng.randint(right + 1)
