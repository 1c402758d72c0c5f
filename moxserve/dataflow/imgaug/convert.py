"""Colour spaces and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import PhotometricAugmentor
from moxserve.dataflow.imgaug.pixels import in_single_precision, restore_channels, saturate
from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = ["ColorSpace", "Grayscale", "ToFloat32", "ToUint8"]


class ColorSpace(PhotometricAugmentor):
    """Convert to another colour space.

    Args:
        mode: cv2's code, such as `cv2.COLOR_BGR2HSV`.
        keepdims: keep the axis of channels where cv2 drops it.
    """

    def __init__(self, mode: int, keepdims: bool = True) -> None:
        self.mode, self.keepdims = mode, keepdims

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        cv2 = opencv()
        try:
            converted = in_single_precision(img, lambda image: cv2.cvtColor(image, self.mode))
        except cv2.error as error:
            raise UsageError(
                f"{type(self).__name__} cannot convert an image of shape {img.shape} and dtype {img.dtype}: {error.err}"
            ) from error
        return restore_channels(converted, img) if self.keepdims else converted


class Grayscale(ColorSpace):
    """Convert to grey.

    Args:
        keepdims: return `[height, width, 1]`, otherwise `[height, width]`.
        rgb: red first; otherwise blue first.
        keepshape: return `[height, width, 3]`, with three equal channels.
    """

    def __init__(self, keepdims: bool = True, rgb: bool = False, keepshape: bool = False) -> None:
        if keepshape and not keepdims:
            raise UsageError("Grayscale: keepshape=True needs keepdims=True")
        cv2 = opencv()
        super().__init__(cv2.COLOR_RGB2GRAY if rgb else cv2.COLOR_BGR2GRAY, keepdims)
        self.rgb, self.keepshape = rgb, keepshape

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        gray = super()._augment(img, params)
        return np.repeat(gray, 3, 2) if self.keepshape else gray


class ToUint8(PhotometricAugmentor):
    """Convert to uint8, rounded and clipped to [0, 255]; makes smaller datapoints."""

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        return img if img.dtype == np.uint8 else saturate(img, np.uint8)


class ToFloat32(PhotometricAugmentor):
    """Convert to float32; what follows loses nothing by rounding."""

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        return img.astype(np.float32)
