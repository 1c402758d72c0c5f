"""The random windows of the training augmentations (see `geometry`): what each one cuts out of a source image.

The distributions are those of the TensorFlow operations that the augmentations use on decoded images; offsets that
resizing makes fractional are rounded to source pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moxserve.errors import DataError
from moxserve.images.geometry import Window

__all__ = ["CenterWindow", "PaddedCrop", "RandomResizedCrop", "ResizedSideCrop", "StretchAndFlip"]


def _flipped(rng: np.random.Generator, flip: bool = True) -> bool:
    return flip and bool(rng.random() < 0.5)


@dataclass(frozen=True, slots=True)
class StretchAndFlip:
    """The whole image, resized to one size, flipped half of the time; the aspect ratio is not kept.

    Attributes:
        height: rows of the result.
        width: columns of the result.
    """

    height: int
    width: int

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window; see Geometry."""
        return Window(0, 0, height, width, self.height, self.width, _flipped(rng))


@dataclass(frozen=True, slots=True)
class ResizedSideCrop:
    """VGG's: the smallest side resized to a random length, then a crop at a random place, flipped half of the time.

    Attributes:
        height: rows of the crop.
        width: columns of the crop.
        least: length of the smallest side, in pixels, at least.
        most: at most, inclusive.
    """

    height: int
    width: int
    least: int = 256
    most: int = 512

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window; see Geometry.

        Raises:
            DataError: the crop does not fit into the resized image.
        """
        side = int(rng.integers(self.least, self.most, endpoint=True))
        scale = side / min(height, width)
        resized = round(height * scale), round(width * scale)
        if resized[0] < self.height or resized[1] < self.width:
            raise DataError(
                f"a crop of {self.height}x{self.width} does not fit into an image of {height}x{width} pixels, "
                f"which is resized to {resized[0]}x{resized[1]}"
            )
        top, rows = _in_source(rng, height, resized[0], self.height)
        left, columns = _in_source(rng, width, resized[1], self.width)
        return Window(top, left, rows, columns, self.height, self.width, _flipped(rng))


def _in_source(rng: np.random.Generator, source: int, resized: int, crop: int) -> tuple[int, int]:
    """Place a crop in a resized side; return its start and length in the source."""
    offset = int(rng.integers(0, resized - crop, endpoint=True))
    length = max(1, round(crop * source / resized))
    return min(round(offset * source / resized), source - length), length


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Inception's: a random part of random shape, resized without keeping its aspect ratio, flipped half of the time.

    Draws as TensorFlow's `sample_distorted_bounding_box` does with the whole image as the only object: an aspect ratio,
    then a height among those that give an allowed area, then a place; up to so many times, or else the whole image.

    Attributes:
        height: rows of the result.
        width: columns of the result.
        areas: smallest and largest part of the image's area.
        aspect_ratios: smallest and largest width / height.
        least_covered: how much of the image's area a part must have at least, beside `areas`.
        attempts: how many parts are tried.
    """

    height: int
    width: int
    areas: tuple[float, float] = (0.05, 1.0)
    aspect_ratios: tuple[float, float] = (0.75, 1.33)
    least_covered: float = 0.1
    attempts: int = 100

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window; see Geometry."""
        rows, columns = self._shape(height, width, rng)
        # `random` takes a tenth of the time of `integers`, which counts beside decoding.
        top = int(rng.random() * (height - rows))
        left = int(rng.random() * (width - columns))
        return Window(top, left, rows, columns, self.height, self.width, _flipped(rng))

    def _shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        whole = height * width
        for _ in range(self.attempts):
            shape = self._attempt(height, width, rng)
            if shape is not None and shape[0] * shape[1] >= self.least_covered * whole:
                return shape
        return height, width

    def _attempt(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """Draw a shape; None when no height gives an allowed one."""
        narrowest, widest = self.aspect_ratios
        ratio = narrowest + (widest - narrowest) * rng.random()
        least, most = self.areas[0] * height * width, self.areas[1] * height * width
        # The largest height is bounded by the area and by both sides of the image.
        tallest = min(round(math.sqrt(most / ratio)), height, math.ceil((width + 0.5) / ratio) - 1)
        shortest = min(round(math.sqrt(least / ratio)), tallest)
        rows = shortest + int(rng.random() * (tallest - shortest + 1))
        # Rounding may have put the area just outside.
        area = rows * round(rows * ratio)
        rows += int(area < least) - int(area > most)
        columns = round(rows * ratio)
        fits = 0 < rows <= height and 0 < columns <= width
        return (rows, columns) if fits and least <= rows * columns <= most else None


@dataclass(frozen=True, slots=True)
class PaddedCrop:
    """CifarNet's: zeros around the image, then a crop at a random place, flipped half of the time; nothing is resized.

    Attributes:
        height: rows of the crop.
        width: columns of the crop.
        padding: zeros on each side, in pixels.
    """

    height: int
    width: int
    padding: int = 4

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window; see Geometry.

        Raises:
            DataError: the crop does not fit into the padded image.
        """
        room = height + 2 * self.padding - self.height, width + 2 * self.padding - self.width
        if min(room) < 0:
            raise DataError(
                f"a crop of {self.height}x{self.width} does not fit into an image of {height}x{width} pixels with "
                f"{self.padding} zeros on each side"
            )
        top, left = (int(rng.integers(0, most, endpoint=True)) - self.padding for most in room)
        return Window(top, left, self.height, self.width, self.height, self.width, _flipped(rng))


@dataclass(frozen=True, slots=True)
class CenterWindow:
    """LeNet's: the middle of the image, or the image in the middle of zeros, each side for itself; no randomness.

    Attributes:
        height: rows of the result.
        width: columns of the result.
    """

    height: int
    width: int

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window; see Geometry."""
        del rng
        top, left = _middle(height, self.height), _middle(width, self.width)
        return Window(top, left, self.height, self.width, self.height, self.width)


def _middle(source: int, wanted: int) -> int:
    """Start of the middle of a side: rounded down both where it is cut and where it is padded."""
    return (source - wanted) // 2 if source >= wanted else -((wanted - source) // 2)
