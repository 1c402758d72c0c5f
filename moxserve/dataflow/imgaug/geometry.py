"""Resizing, flipping, and affine maps."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import ImageAugmentor
from moxserve.dataflow.imgaug.pixels import (
    BORDER_REPLICATE,
    INTER_LINEAR,
    check_interval,
    check_probability,
    shape2d,
)
from moxserve.dataflow.imgaug.transform import (
    CropTransform,
    FlipTransform,
    NoOpTransform,
    ResizeTransform,
    Transform,
    TransformList,
    TransposeTransform,
    WarpAffineTransform,
)
from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = [
    "Affine",
    "Flip",
    "RandomResize",
    "Resize",
    "ResizeShortestEdge",
    "Rotation",
    "RotationAndCropValid",
    "Shift",
    "Transpose",
]

_log = logging.getLogger(__name__)
_ATTEMPTS = 50


class Resize(ImageAugmentor):
    """Resize to one size.

    Args:
        shape: (height, width), or one side of a square.
        interp: cv2's interpolation.
    """

    def __init__(self, shape: Any, interp: int = INTER_LINEAR) -> None:
        self.shape, self.interp = shape2d(shape, "shape"), interp

    def get_transform(self, img: Any) -> ResizeTransform:
        """Make the transform."""
        return ResizeTransform(img.shape[0], img.shape[1], *self.shape, self.interp)


class ResizeShortestEdge(ImageAugmentor):
    """Resize the shortest side to one length, keeping the aspect ratio.

    Args:
        size: the length, in pixels.
        interp: cv2's interpolation.
    """

    def __init__(self, size: int, interp: int = INTER_LINEAR) -> None:
        self.size, self.interp = shape2d(size, "size")[0], interp

    def get_transform(self, img: Any) -> ResizeTransform:
        """Make the transform."""
        height, width = img.shape[:2]
        scale = self.size / min(height, width)
        # The shortest side is exact: (x / x) * s may be a little less in floats.
        new_h, new_w = (max(self.size, int(side * scale + 0.5)) for side in (height, width))
        return ResizeTransform(height, width, new_h, new_w, self.interp)


class RandomResize(ImageAugmentor):
    """Resize width and height to random lengths.

    Args:
        xrange: of the width: floats, a factor of the image's; integers, pixels.
        yrange: of the height; of the same kind.
        minimum: least width and height, in pixels.
        aspect_ratio_thres: by how much the aspect ratio may change, as a part of it; draws beyond are drawn again, and
            after 50 of them the image is left as it is. 0 keeps the ratio: `xrange` decides, and `yrange` is the same.
        interp: cv2's interpolation.
    """

    def __init__(
        self,
        xrange: Any,
        yrange: Any,
        minimum: tuple[int, int] = (0, 0),
        aspect_ratio_thres: float = 0.15,
        interp: int = INTER_LINEAR,
    ) -> None:
        self.xrange, self.yrange = check_interval("xrange", xrange, 0), check_interval("yrange", yrange, 0)
        self._scales = any(isinstance(x, float) for x in self.xrange)
        if self._scales != any(isinstance(y, float) for y in self.yrange):
            raise UsageError(f"xrange and yrange must both be factors or both be pixels, got {xrange!r} and {yrange!r}")
        if aspect_ratio_thres < 0:
            raise UsageError(f"aspect_ratio_thres must not be negative, got {aspect_ratio_thres!r}")
        if aspect_ratio_thres == 0 and self.xrange != self.yrange:
            raise UsageError(f"aspect_ratio_thres=0 needs equal xrange and yrange, got {xrange!r} and {yrange!r}")
        self.minimum, self.aspect_ratio_thres, self.interp = minimum, aspect_ratio_thres, interp

    def get_transform(self, img: Any) -> ResizeTransform:
        """Draw the size."""
        height, width = img.shape[:2]
        for _ in range(_ATTEMPTS):
            new_h, new_w = self._size(height, width)
            change = abs(new_w / new_h - width / height) / (width / height)
            if self.aspect_ratio_thres == 0 or change < self.aspect_ratio_thres + 1e-5:
                return ResizeTransform(height, width, new_h, new_w, self.interp)
        _log.warning("RandomResize left an image of %dx%d as it is: no draw kept its aspect ratio", height, width)
        return ResizeTransform(height, width, height, width, self.interp)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        x = self._rand_range(*self.xrange) * (width if self._scales else 1)
        y = self._rand_range(*self.yrange) * (height if self._scales else 1)
        if self.aspect_ratio_thres == 0:
            y = x * height / width
        x, y = max(x, self.minimum[0], 1), max(y, self.minimum[1], 1)
        return int(y + 0.5), int(x + 0.5)


class Flip(ImageAugmentor):
    """Mirror with a probability.

    Args:
        horiz: left to right.
        vert: upside down; just one of the two.
        prob: the probability.
    """

    def __init__(self, horiz: bool = False, vert: bool = False, prob: float = 0.5) -> None:
        if horiz == vert:
            raise UsageError(
                f"Flip takes one of horiz and vert, got horiz={horiz!r}, vert={vert!r}", hint="use two Flips for both"
            )
        self.horiz, self.vert, self.prob = horiz, vert, check_probability("prob", prob)

    def get_transform(self, img: Any) -> Transform:
        """Draw whether."""
        if self.rng.uniform() < self.prob:
            return FlipTransform(img.shape[0], img.shape[1], self.horiz)
        return NoOpTransform()


class Transpose(ImageAugmentor):
    """Exchange rows and columns with a probability.

    Args:
        prob: the probability.
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = check_probability("prob", prob)

    def get_transform(self, img: Any) -> Transform:
        """Draw whether."""
        return TransposeTransform() if self.rng.uniform() < self.prob else NoOpTransform()


class Shift(ImageAugmentor):
    """Move the image by whole pixels.

    Args:
        horiz_frac: part of the width that it moves left or right at most, below 1.
        vert_frac: part of the height that it moves up or down at most.
        border: cv2's border.
        border_value: where the border is constant.
    """

    def __init__(
        self,
        horiz_frac: float = 0,
        vert_frac: float = 0,
        border: int = BORDER_REPLICATE,
        border_value: Any = 0,
    ) -> None:
        if not (0 <= horiz_frac < 1 and 0 <= vert_frac < 1):
            raise UsageError(f"Shift takes parts from 0 to below 1, got {horiz_frac!r} and {vert_frac!r}")
        self.horiz_frac, self.vert_frac = horiz_frac, vert_frac
        self.border, self.border_value = border, border_value

    def get_transform(self, img: Any) -> WarpAffineTransform:
        """Draw the distance."""
        height, width = img.shape[:2]
        dx = np.round(self._rand_range(-1, 1) * self.horiz_frac * width)
        dy = np.round(self._rand_range(-1, 1) * self.vert_frac * height)
        mat = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
        return WarpAffineTransform(mat, (width, height), INTER_LINEAR, self.border, self.border_value)


def _check_angles(max_deg: float, step_deg: float | None) -> None:
    if max_deg < 0:
        raise UsageError(f"max_deg must not be negative, got {max_deg!r}")
    if step_deg is not None and (max_deg != 180 or step_deg <= 0 or 180 % step_deg):
        raise UsageError(f"step_deg must divide 180, with max_deg=180; got step_deg={step_deg!r}, max_deg={max_deg!r}")


def _angle(augmentor: Any) -> float:
    degrees = float(augmentor._rand_range(-augmentor.max_deg, augmentor.max_deg))
    step = augmentor.step_deg
    return degrees if step is None else degrees // step * step


class Rotation(ImageAugmentor):
    """Turn around a random point.

    Args:
        max_deg: largest angle to either side, in degrees.
        center_range: where the point may be, as parts of width and height.
        interp: cv2's interpolation.
        border: cv2's border.
        step_deg: only multiples of this angle, a divisor of 180; needs `max_deg=180`.
        border_value: where the border is constant.
    """

    def __init__(
        self,
        max_deg: float,
        center_range: tuple[float, float] = (0, 1),
        interp: int = INTER_LINEAR,
        border: int = BORDER_REPLICATE,
        step_deg: float | None = None,
        border_value: Any = 0,
    ) -> None:
        _check_angles(max_deg, step_deg)
        self.max_deg, self.step_deg = max_deg, step_deg
        self.center_range = check_interval("center_range", center_range)
        self.interp, self.border, self.border_value = interp, border, border_value

    def get_transform(self, img: Any) -> WarpAffineTransform:
        """Draw angle and point."""
        size = img.shape[1], img.shape[0]
        center = np.array(size) * self._rand_range(*self.center_range, 2) - 0.5
        mat = opencv().getRotationMatrix2D(tuple(center.tolist()), _angle(self), 1)
        return WarpAffineTransform(mat, size, self.interp, self.border, self.border_value)


class RotationAndCropValid(ImageAugmentor):
    """Turn around the middle, then cut the largest upright rectangle out that has no border in it.

    The results differ in size.

    Args:
        max_deg: largest angle to either side, in degrees.
        interp: cv2's interpolation.
        step_deg: as for Rotation.
    """

    def __init__(self, max_deg: float, interp: int = INTER_LINEAR, step_deg: float | None = None) -> None:
        _check_angles(max_deg, step_deg)
        self.max_deg, self.interp, self.step_deg = max_deg, interp, step_deg

    def get_transform(self, img: Any) -> TransformList:
        """Draw the angle."""
        height, width = img.shape[:2]
        degrees = _angle(self)
        mat = opencv().getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1)
        # Rounding may leave half a pixel of border at the edges of the crop: better the image's own.
        rotate = WarpAffineTransform(mat, (width, height), self.interp, BORDER_REPLICATE)
        w, h = self.largest_rotated_rect(width, height, degrees)
        w, h = min(max(w, 1), width), min(max(h, 1), height)
        return TransformList([rotate, CropTransform((height - h) // 2, (width - w) // 2, h, w)])

    @staticmethod
    def largest_rotated_rect(w: int, h: int, angle: float) -> tuple[int, int]:
        """Return width and height of the largest upright rectangle in a turned one.

        Either two of its corners lie on the long sides of the turned one, or all four touch it.

        Args:
            w: width of the turned one.
            h: its height.
            angle: in degrees.
        """
        sin, cos = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
        longest, shortest = max(w, h), min(w, h)
        if shortest <= 2 * sin * cos * longest or abs(sin - cos) < 1e-10:
            along, across = shortest / 2 / max(sin, 1e-12), shortest / 2 / max(cos, 1e-12)
            found = (along, across) if w >= h else (across, along)
        else:
            scale = cos * cos - sin * sin
            found = ((w * cos - h * sin) / scale, (h * cos - w * sin) / scale)
        return round(found[0]), round(found[1])


class Affine(ImageAugmentor):
    """Scale, turn, shear and move around the middle.

    Args:
        scale: smallest and largest factor; None: 1.
        translate_frac: parts of width and height that the image moves at most, to either side, by whole pixels.
        rotate_max_deg: largest angle to either side, in degrees.
        shear: largest angle by which the y axis turns against the x axis, in degrees, from 0 to 180.
        interp: cv2's interpolation.
        border: cv2's border.
        border_value: where the border is constant.
    """

    def __init__(
        self,
        scale: tuple[float, float] | None = None,
        translate_frac: tuple[float, float] | None = None,
        rotate_max_deg: float = 0.0,
        shear: float = 0.0,
        interp: int = INTER_LINEAR,
        border: int = BORDER_REPLICATE,
        border_value: Any = 0,
    ) -> None:
        self.scale = None if scale is None else check_interval("scale", scale, 1e-6)
        if translate_frac is not None and len(translate_frac) != 2:
            raise UsageError(f"translate_frac must be two parts, of width and height, got {translate_frac!r}")
        for part in translate_frac or ():
            check_probability("a part of translate_frac", part)
        if rotate_max_deg < 0 or not 0 <= shear <= 180:
            raise UsageError(
                f"Affine needs rotate_max_deg of at least 0 and shear from 0 to 180, got {rotate_max_deg!r}, {shear!r}"
            )
        self.translate_frac, self.rotate_max_deg, self.shear = translate_frac, rotate_max_deg, shear
        self.interp, self.border, self.border_value = interp, border, border_value

    def get_transform(self, img: Any) -> WarpAffineTransform:
        """Draw the map."""
        size = np.array([img.shape[1], img.shape[0]])
        scale = 1.0 if self.scale is None else self._rand_range(*self.scale)
        turn = math.radians(self._rand_range(-self.rotate_max_deg, self.rotate_max_deg))
        sheared = turn + math.radians(self._rand_range(-self.shear, self.shear))
        linear = scale * np.array([[math.cos(turn), -math.sin(sheared)], [math.sin(turn), math.cos(sheared)]])
        move = np.round(self._rand_range(-1, 1, 2) * size * (self.translate_frac or (0, 0)))
        middle = size / 2 - 0.5
        mat = np.column_stack([linear, middle - linear @ middle + move])
        return WarpAffineTransform(mat, (img.shape[1], img.shape[0]), self.interp, self.border, self.border_value)
