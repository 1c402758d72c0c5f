"""Brightness, contrast, colours, and normalizing."""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import PhotometricAugmentor
from moxserve.dataflow.imgaug.pixels import (
    channelwise,
    check_color,
    check_interval,
    in_single_precision,
    pointwise,
    saturate,
)
from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = [
    "Brightness",
    "BrightnessScale",
    "Clip",
    "Contrast",
    "Gamma",
    "Hue",
    "Lighting",
    "MeanVarianceNormalize",
    "MinMaxNormalize",
    "Saturation",
]


def _limit(values: np.ndarray, clip: bool) -> np.ndarray:
    return np.clip(values, 0, 255) if clip else values


class Hue(PhotometricAugmentor):
    """Turn the hue.

    Args:
        range: of the offset, in units of two degrees: (0, 180), or (-90, 90), is the whole circle.
        rgb: red first; otherwise blue first.
    """

    def __init__(self, range: tuple[float, float] = (0, 180), rgb: bool = True) -> None:
        self.range, self.rgb = check_interval("range", range, -180, 180), bool(rgb)

    def _get_augment_params(self, img: Any) -> float:
        return float(self._rand_range(*self.range))

    def _augment(self, img: np.ndarray, params: float) -> np.ndarray:
        check_color(img, "Hue")
        cv2 = opencv()
        there, back = (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if self.rgb else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)

        def turn(image: np.ndarray) -> np.ndarray:
            hsv = cv2.cvtColor(image, there)
            if image.dtype == np.uint8:  # cv2's hue of bytes is in units of two degrees, of floats in degrees
                hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(params)) % 180
            else:
                hsv[..., 0] = (hsv[..., 0] + 2 * params) % 360
            turned: np.ndarray = cv2.cvtColor(hsv, back)
            return turned

        return in_single_precision(img, turn)


class Brightness(PhotometricAugmentor):
    """Add a random number.

    Args:
        delta: largest distance from 0, positive.
        clip: clip floating images to [0, 255].
    """

    def __init__(self, delta: float, clip: bool = True) -> None:
        if not delta > 0:
            raise UsageError(f"Brightness: delta must be positive, got {delta!r}")
        self.delta, self.clip = delta, clip

    def _get_augment_params(self, img: Any) -> float:
        return float(self._rand_range(-self.delta, self.delta))

    def _augment(self, img: np.ndarray, params: float) -> np.ndarray:
        return pointwise(img, lambda x: _limit(x + params, self.clip))


class BrightnessScale(PhotometricAugmentor):
    """Multiply by a random number.

    Args:
        range: of the number.
        clip: clip floating images to [0, 255].
    """

    def __init__(self, range: tuple[float, float], clip: bool = True) -> None:
        self.range, self.clip = check_interval("range", range, 0), clip

    def _get_augment_params(self, img: Any) -> float:
        return float(self._rand_range(*self.range))

    def _augment(self, img: np.ndarray, params: float) -> np.ndarray:
        return pointwise(img, lambda x: _limit(x * params, self.clip))


class Contrast(PhotometricAugmentor):
    """Scale the distance from the mean: (x - mean) * factor + mean.

    Args:
        factor_range: of the factor.
        rgb: None: each channel has its own mean; True or False: all have the mean of the grey image, which is made of
            red, green, blue, or of blue, green, red.
        clip: clip floating images to [0, 255].
    """

    def __init__(self, factor_range: tuple[float, float], rgb: bool | None = None, clip: bool = True) -> None:
        self.factor_range, self.rgb, self.clip = check_interval("factor_range", factor_range), rgb, clip

    def _get_augment_params(self, img: Any) -> float:
        return float(self._rand_range(*self.factor_range))

    def _augment(self, img: np.ndarray, params: float) -> np.ndarray:
        mean = _means(img) if self.rgb is None else _means(_gray(img, self.rgb, "Contrast"))
        mean = np.asarray(mean, np.float32 if img.dtype == np.uint8 else img.dtype)
        return channelwise(img, lambda x: _limit((x - mean) * params + mean, self.clip))


def _means(img: np.ndarray) -> np.ndarray:
    """Return the mean of each channel: `[channels] float64`."""
    channels = img.shape[2] if img.ndim == 3 else 1
    if channels > 4 or img.dtype == np.float16:
        return np.atleast_1d(img.mean((0, 1), dtype=np.float64))
    return np.array(opencv().mean(img)[:channels])


def _gray(img: np.ndarray, rgb: bool, augmentor: str) -> np.ndarray:
    check_color(img, augmentor)
    cv2 = opencv()
    code = cv2.COLOR_RGB2GRAY if rgb else cv2.COLOR_BGR2GRAY
    return in_single_precision(img, lambda image: cv2.cvtColor(image, code))


class Saturation(PhotometricAugmentor):
    """Blend with the grey image: x * v + grey * (1 - v), with v from 1 - alpha to 1 + alpha.

    Args:
        alpha: largest change, from 0 to below 1.
        rgb: red first; otherwise blue first.
        clip: clip floating images to [0, 255].
    """

    def __init__(self, alpha: float = 0.4, rgb: bool = True, clip: bool = True) -> None:
        if not 0 <= alpha < 1:
            raise UsageError(f"Saturation: alpha must be from 0 to below 1, got {alpha!r}")
        self.alpha, self.rgb, self.clip = alpha, bool(rgb), clip

    def _get_augment_params(self, img: Any) -> float:
        return 1 + float(self._rand_range(-self.alpha, self.alpha))

    def _augment(self, img: np.ndarray, params: float) -> np.ndarray:
        cv2 = opencv()
        gray = in_single_precision(_gray(img, self.rgb, "Saturation"), lambda g: cv2.cvtColor(g, cv2.COLOR_GRAY2BGR))
        mixed = in_single_precision(
            np.stack([img, gray]), lambda pair: cv2.addWeighted(pair[0], params, pair[1], 1 - params, 0)
        )
        return mixed if img.dtype == np.uint8 else _limit(mixed, self.clip)


class Lighting(PhotometricAugmentor):
    """Add a random mixture of the main colours of a data set (Krizhevsky et al. 2012, section 4.1).

    Args:
        std: deviation of the random weights.
        eigval: `[3]` eigenvalues of the colours' covariance.
        eigvec: `[3, 3]` its eigenvectors, one a column, channels in the order of the images'.
    """

    def __init__(self, std: float, eigval: Any, eigvec: Any) -> None:
        self.std, self.eigval, self.eigvec = std, np.asarray(eigval, np.float64), np.asarray(eigvec, np.float64)
        if self.eigval.shape != (3,) or self.eigvec.shape != (3, 3):
            raise UsageError(
                f"Lighting needs eigval of shape (3,) and eigvec of shape (3, 3), got {self.eigval.shape} and "
                f"{self.eigvec.shape}"
            )

    def _get_augment_params(self, img: Any) -> np.ndarray:
        check_color(img, "Lighting")
        return self.rng.randn(3) * self.std

    def _augment(self, img: np.ndarray, params: np.ndarray) -> np.ndarray:
        check_color(img, "Lighting")
        offset = (self.eigvec @ (params * self.eigval)).astype(np.float32)
        return channelwise(img, lambda x: x + offset)


class Gamma(PhotometricAugmentor):
    """Raise to a random power: 255 * (x / 255) ** (1 / (1 + gamma)). Values are clipped to [0, 255].

    Args:
        range: of gamma, above -1.
    """

    def __init__(self, range: tuple[float, float] = (-0.5, 0.5)) -> None:
        self.range = check_interval("range", range)
        if self.range[0] <= -1:
            raise UsageError(f"Gamma: range must be above -1, got {range!r}")

    def _get_augment_params(self, img: Any) -> float:
        return float(self._rand_range(*self.range))

    def _augment(self, img: np.ndarray, params: float) -> np.ndarray:
        return pointwise(img, lambda x: 255 * (np.clip(x, 0, 255) / 255) ** (1 / (1 + params)))


class Clip(PhotometricAugmentor):
    """Clip values.

    Args:
        min: the smallest that stays.
        max: the largest.
    """

    def __init__(self, min: float = 0, max: float = 255) -> None:
        self.min, self.max = check_interval("(min, max)", (min, max))

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        return pointwise(img, lambda x: np.clip(x, self.min, self.max))


class MeanVarianceNormalize(PhotometricAugmentor):
    """Subtract the mean, divide by max(deviation, 1 / sqrt(number of values)). The result is float32.

    Args:
        all_channel: of all channels together; otherwise of each one.
    """

    def __init__(self, all_channel: bool = True) -> None:
        self.all_channel = all_channel

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        axes = None if self.all_channel else (0, 1)
        mean, deviation = img.mean(axes, dtype=np.float64), img.std(axes, dtype=np.float64)
        scale = 1 / np.maximum(deviation, 1 / np.sqrt(img.size))
        return (img.astype(np.float32) - mean.astype(np.float32)) * scale.astype(np.float32)


class MinMaxNormalize(PhotometricAugmentor):
    """Stretch the values to an interval; where all are equal, to its lower end. The result is float32.

    Args:
        min: lower end.
        max: upper end.
        all_channel: all channels together; otherwise each one.
    """

    def __init__(self, min: float = 0, max: float = 255, all_channel: bool = True) -> None:
        self.min, self.max = check_interval("(min, max)", (min, max))
        self.all_channel = all_channel

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        img = img.astype(np.float32)
        axes = None if self.all_channel else (0, 1)
        least, most = img.min(axes), img.max(axes)
        spread = np.where(most > least, most - least, 1).astype(np.float32)
        return saturate((self.max - self.min) * ((img - least) / spread) + self.min, np.float32)
