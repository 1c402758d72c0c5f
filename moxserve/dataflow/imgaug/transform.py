"""Transforms: what an augmentor decided to do, once. Applied to images, and to coordinates in them.

Coordinates are `[n, 2]` floats, x and y. The pixel in row i and column j covers x from j to j + 1, y from i to i + 1;
its centre is at (j + 0.5, i + 0.5), and an image reaches from 0 to its width and height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.pixels import (
    BORDER_CONSTANT,
    INTER_LINEAR,
    in_single_precision,
    restore_channels,
)
from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = [
    "BaseTransform",
    "CropTransform",
    "FlipTransform",
    "LazyTransform",
    "NoOpTransform",
    "PhotometricTransform",
    "ResizeTransform",
    "Transform",
    "TransformFactory",
    "TransformList",
    "TransposeTransform",
    "WarpAffineTransform",
]


class Transform:
    """Base of all transforms; deterministic, and reusable on other images of the same size (masks, second views)."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the transformed image; the given one is not changed."""
        raise TypeError(f"{type(self).__name__} defines no apply_image")

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return where points of the image went.

        Args:
            coords: `[n, 2]` x, y; not changed.

        Returns:
            `[n, 2]`, of a floating dtype.
        """
        raise TypeError(f"{type(self).__name__} defines no apply_coords")

    def __repr__(self) -> str:
        parts = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"imgaug.{type(self).__name__}({', '.join(parts)})"


BaseTransform = Transform


def _points(coords: Any) -> np.ndarray:
    points = np.asarray(coords)
    if points.ndim != 2 or points.shape[1] != 2:
        raise UsageError(f"coordinates must be an array [n, 2] of x and y, got shape {points.shape}")
    return points if points.dtype.kind == "f" else points.astype(np.float64)


def _check_size(img: np.ndarray, height: int, width: int, what: str) -> None:
    if img.shape[:2] != (height, width):
        raise UsageError(
            f"{what} was made for an image of {height}x{width} pixels, got one of {img.shape[0]}x{img.shape[1]}"
        )


class NoOpTransform(Transform):
    """Nothing."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image."""
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the coordinates."""
        return _points(coords)


class PhotometricTransform(Transform):
    """A change of pixels that moves none.

    Args:
        func: image -> image.
        name: what it is, for messages.
    """

    def __init__(self, func: Callable[[np.ndarray], np.ndarray], name: str = "") -> None:
        self.name = name
        self._func = func

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Call the function."""
        return self._func(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the coordinates."""
        return _points(coords)


class TransformFactory(Transform):
    """A transform made of functions.

    Args:
        name: what it is, for messages.
        apply_image: image -> image.
        apply_coords: coordinates -> coordinates; None: nobody knows where points go.
    """

    def __init__(self, name: str = "", apply_image: Any = None, apply_coords: Any = None) -> None:
        self.name = name
        self._image, self._coords = apply_image, apply_coords

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Call the function of images."""
        result: np.ndarray = self._image(img)
        return result

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Call the function of coordinates.

        Raises:
            UsageError: there is none.
        """
        if self._coords is None:
            raise UsageError(f"{self.name or 'this transform'} cannot tell where coordinates go")
        result: np.ndarray = self._coords(_points(coords))
        return result


class TransformList(Transform):
    """Transforms, one after the other.

    Args:
        tfms: the transforms.
    """

    def __init__(self, tfms: Sequence[Transform]) -> None:
        for transform in tfms:
            if not isinstance(transform, Transform):
                raise UsageError(f"TransformList expected transforms, got {type(transform).__name__}")
        self.tfms = list(tfms)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Apply all to an image."""
        for transform in self.tfms:
            img = transform.apply_image(img)
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Apply all to coordinates."""
        coords = _points(coords)
        for transform in self.tfms:
            coords = transform.apply_coords(coords)
        return coords


class LazyTransform(Transform):
    """A transform that is made when it meets its first image, because it depends on what was done before.

    Args:
        get_transform: image -> transform.
    """

    def __init__(self, get_transform: Callable[[np.ndarray], Transform]) -> None:
        self._get = get_transform
        self._made: Transform | None = None

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Apply it, making it first if there is none yet."""
        if self._made is None:
            self._made = self._get(img)
        return self._made.apply_image(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Apply it.

        Raises:
            UsageError: there is none yet.
        """
        if self._made is None:
            raise UsageError("apply_image must be called before apply_coords: it decides what an augmentor list does")
        return self._made.apply_coords(coords)

    def __repr__(self) -> str:
        return "imgaug.LazyTransform()" if self._made is None else repr(self._made)


class ResizeTransform(Transform):
    """Resize with half-pixel centres (cv2).

    Args:
        h: rows of the image.
        w: columns of the image.
        new_h: rows of the result.
        new_w: columns of the result.
        interp: cv2's interpolation.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int = INTER_LINEAR) -> None:
        self.h, self.w, self.new_h, self.new_w, self.interp = h, w, new_h, new_w, interp

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize."""
        _check_size(img, self.h, self.w, "a resizing")
        if (self.new_h, self.new_w) == (self.h, self.w):
            return img
        size = self.new_w, self.new_h
        resized = in_single_precision(img, lambda x: opencv().resize(x, size, interpolation=self.interp))
        return restore_channels(resized, img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale."""
        points = _points(coords)
        return points * np.array([self.new_w / self.w, self.new_h / self.h], points.dtype)


class CropTransform(Transform):
    """Cut a window out.

    Args:
        y0: first row.
        x0: first column.
        h: rows.
        w: columns.
    """

    def __init__(self, y0: int, x0: int, h: int, w: int) -> None:
        self.y0, self.x0, self.h, self.w = y0, x0, h, w

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the window, a view."""
        if self.y0 + self.h > img.shape[0] or self.x0 + self.w > img.shape[1]:
            raise UsageError(f"{self!r} does not fit into an image of {img.shape[0]}x{img.shape[1]} pixels")
        return img[self.y0 : self.y0 + self.h, self.x0 : self.x0 + self.w]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move."""
        points = _points(coords)
        return points - np.array([self.x0, self.y0], points.dtype)


class FlipTransform(Transform):
    """Mirror.

    Args:
        h: rows of the image.
        w: columns of the image.
        horiz: left to right; otherwise upside down.
    """

    def __init__(self, h: int, w: int, horiz: bool = True) -> None:
        self.h, self.w, self.horiz = h, w, horiz

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Mirror."""
        _check_size(img, self.h, self.w, "a flip")
        if img.dtype != np.uint8:
            return np.ascontiguousarray(img[:, ::-1] if self.horiz else img[::-1])
        return restore_channels(opencv().flip(img, int(self.horiz)), img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Mirror."""
        points = _points(coords).copy()
        axis, side = (0, self.w) if self.horiz else (1, self.h)
        points[:, axis] = side - points[:, axis]
        return points


class TransposeTransform(Transform):
    """Exchange rows and columns."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Transpose."""
        return np.ascontiguousarray(np.swapaxes(img, 0, 1))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Exchange x and y."""
        return _points(coords)[:, ::-1].copy()


class WarpAffineTransform(Transform):
    """An affine map.

    Args:
        mat: `[2, 3]`, from source to result, of cv2: in it a pixel's centre is at whole numbers.
        dsize: width and height of the result.
        interp: cv2's interpolation.
        border_mode: cv2's border.
        border_value: of all channels, where the border is constant.
    """

    def __init__(
        self,
        mat: np.ndarray,
        dsize: tuple[int, int],
        interp: int = INTER_LINEAR,
        border_mode: int = BORDER_CONSTANT,
        border_value: Any = 0,
    ) -> None:
        self.mat, self.dsize, self.interp = np.asarray(mat, np.float64), dsize, interp
        self.border_mode, self.border_value = border_mode, border_value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Warp."""
        # cv2 takes a single number as the value of the first channel, with zeros in the others.
        value = (self.border_value,) * 4 if np.isscalar(self.border_value) else self.border_value

        def warp(image: np.ndarray) -> np.ndarray:
            warped: np.ndarray = opencv().warpAffine(
                image, self.mat, self.dsize, flags=self.interp, borderMode=self.border_mode, borderValue=value
            )
            return warped

        return restore_channels(in_single_precision(img, warp), img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map."""
        points = _points(coords)
        mapped = (points - 0.5) @ self.mat[:, :2].T + self.mat[:, 2] + 0.5
        return mapped.astype(points.dtype)
