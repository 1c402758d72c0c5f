"""Which part of an image is wanted, and at which size: what the decoder needs to know of an augmentation.

A random crop, resize and flip are one window of the source image. The decoder takes the window, so that pixels outside
of it are never converted, resized or copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from moxserve.errors import UsageError

__all__ = ["Geometry", "Stretch", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image in source pixels, and the size that it is resized to.

    A window may reach beyond the image: what lies outside is 0 (black), as zero padding before a random crop gives it.

    Attributes:
        top: first row; negative above the image.
        left: first column; negative left of the image.
        height: rows, at least 1.
        width: columns, at least 1.
        out_height: rows of the result, at least 1.
        out_width: columns of the result, at least 1.
        flip: mirror the result left to right.

    Raises:
        UsageError: a side is smaller than 1.
    """

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the sides."""
        if self.height < 1 or self.width < 1 or self.out_height < 1 or self.out_width < 1:
            raise UsageError(f"a window's sides must be at least 1: {self}")


@runtime_checkable
class Geometry(Protocol):
    """Draws a window for an image. Called from several threads: it holds no state that changes."""

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window of one image.

        Args:
            height: of the decoded image.
            width: of the decoded image.
            rng: where all random numbers are drawn from; one for each image.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """The whole image, resized to one size; the aspect ratio is not kept.

    Attributes:
        height: rows of the result.
        width: columns of the result.
    """

    height: int
    width: int

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Return the window; nothing is drawn."""
        del rng
        return Window(0, 0, height, width, self.height, self.width)
