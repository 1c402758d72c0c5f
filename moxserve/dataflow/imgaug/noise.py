"""Noise and blur."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import PhotometricAugmentor
from moxserve.dataflow.imgaug.pixels import (
    BORDER_REPLICATE,
    check_interval,
    check_probability,
    half_open,
    in_single_precision,
    restore_channels,
    saturate,
)
from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = ["GaussianBlur", "GaussianNoise", "JpegNoise", "SaltPepperNoise"]


class _SeededNoise(PhotometricAugmentor):
    """Noise of the image's shape: drawn from a seed when it is applied, so that it is the same each time."""

    def _get_augment_params(self, img: Any) -> int:
        return int(self.rng.randint(2**31))


class JpegNoise(PhotometricAugmentor):
    """Compress as JPEG and back. Images have 1 or 3 channels; floating ones are rounded and clipped to [0, 255].

    Args:
        quality_range: of the quality, both ends included, from 0 to 100.
    """

    def __init__(self, quality_range: tuple[int, int] = (40, 100)) -> None:
        self.quality_range = check_interval("quality_range", quality_range, 0, 100)

    def _get_augment_params(self, img: Any) -> int:
        return int(self.rng.randint(self.quality_range[0], self.quality_range[1] + 1))

    def _augment(self, img: np.ndarray, params: int) -> np.ndarray:
        cv2 = opencv()
        if img.ndim == 3 and img.shape[2] not in (1, 3):
            raise UsageError(f"JpegNoise needs 1 or 3 channels, got an image of shape {img.shape}")
        _, data = cv2.imencode(".jpg", saturate(img, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, params])
        return restore_channels(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), img).astype(img.dtype)


class GaussianNoise(_SeededNoise):
    """Add normal noise.

    Args:
        sigma: its deviation.
        clip: clip floating images to [0, 255].
    """

    def __init__(self, sigma: float = 1, clip: bool = True) -> None:
        if not sigma >= 0:
            raise UsageError(f"GaussianNoise: sigma must not be negative, got {sigma!r}")
        self.sigma, self.clip = sigma, clip

    def _augment(self, img: np.ndarray, params: int) -> np.ndarray:
        noisy = np.random.default_rng(params).standard_normal(img.shape, np.float32) * np.float32(self.sigma) + img
        return saturate(np.clip(noisy, 0, 255) if self.clip else noisy, img.dtype)


class SaltPepperNoise(_SeededNoise):
    """Set random values, each channel for itself, to 255 or 0.

    Args:
        white_prob: probability of 255.
        black_prob: probability of 0.
    """

    def __init__(self, white_prob: float = 0.05, black_prob: float = 0.05) -> None:
        self.white_prob = check_probability("white_prob", white_prob)
        self.black_prob = check_probability("black_prob", black_prob)
        if white_prob + black_prob > 1:
            raise UsageError(f"the probabilities must not add up to more than 1, got {white_prob!r} and {black_prob!r}")

    def _augment(self, img: np.ndarray, params: int) -> np.ndarray:
        draw = np.random.default_rng(params).random(img.shape, np.float32)
        img = img.copy()
        img[draw >= 1 - self.white_prob] = 255
        img[draw < self.black_prob] = 0
        return img


class GaussianBlur(PhotometricAugmentor):
    """Blur with a window of random size; outside of the image its edge goes on.

    Args:
        size_range: the window has 2 * size + 1 pixels, with size drawn from (low, high), without high. One number is
            (0, number).
        sigma_range: of the deviation, in pixels; 0 lets cv2 choose it by the size.
        symmetric: the same size and deviation along both axes.
        max_size: older name of the upper end of `size_range`.
    """

    def __init__(
        self,
        size_range: Any = (0, 3),
        sigma_range: tuple[float, float] = (0, 0),
        symmetric: bool = True,
        max_size: int | None = None,
    ) -> None:
        if max_size is not None:
            size_range = max_size
        self.size_range = (0, size_range) if isinstance(size_range, numbers.Integral) else size_range
        self._sizes = half_open("size_range", self.size_range)
        self.sigma_range, self.symmetric = check_interval("sigma_range", sigma_range, 0), symmetric

    def _get_augment_params(self, img: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
        count = 1 if self.symmetric else 2
        sizes = (2 * self.rng.randint(*self._sizes, size=count) + 1).tolist()
        sigmas = self._rand_range(*self.sigma_range, count).tolist()
        return tuple(sizes * (3 - count)), tuple(sigmas * (3 - count))

    def _augment(self, img: np.ndarray, params: tuple[tuple[int, ...], tuple[float, ...]]) -> np.ndarray:
        size, (x, y) = params

        def blur(image: np.ndarray) -> np.ndarray:
            blurred: np.ndarray = opencv().GaussianBlur(image, size, sigmaX=x, sigmaY=y, borderType=BORDER_REPLICATE)
            return blurred

        return restore_channels(in_single_precision(img, blur), img)
