"""A smooth deformation."""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import ImageAugmentor
from moxserve.dataflow.imgaug.pixels import (
    BORDER_REPLICATE,
    INTER_LINEAR,
    in_single_precision,
    restore_channels,
    shape2d,
)
from moxserve.dataflow.imgaug.transform import Transform, _check_size, _points
from moxserve.errors import UsageError
from moxserve.images.decode import opencv

__all__ = ["DeformTransform", "GaussianDeform"]

_ROUNDS = 100
_CLOSE = 1e-6  # pixels


class GaussianDeform(ImageAugmentor):
    """Pull the image at some points, each by a random offset that fades away from it as a Gaussian.

    Args:
        anchors: the points, (y, x) from 0 to 1.
        shape: (height, width) of the images.
        sigma: how far an offset reaches: its weight at a distance d, as a part of the sides, is exp(-d * d / sigma).
        randrange: largest offset in y and x, in pixels; None: an eighth of the height.
    """

    def __init__(
        self, anchors: Any, shape: tuple[int, int], sigma: float = 0.5, randrange: float | None = None
    ) -> None:
        points = np.asarray(anchors, np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise UsageError(f"anchors must be points (y, x) from 0 to 1, got {anchors!r}")
        if sigma <= 0:
            raise UsageError(f"sigma must be positive, got {sigma!r}")
        self.anchors, self.shape, self.sigma = points, shape2d(shape, "shape"), sigma
        self.randrange = self.shape[0] / 8 if randrange is None else randrange

    def get_transform(self, img: Any) -> DeformTransform:
        """Draw the offsets."""
        offsets = self._rand_range(-1, 1, (len(self.anchors), 2)) * self.randrange
        return DeformTransform(self.anchors, offsets, self.shape, self.sigma)


class DeformTransform(Transform):
    """Pixel p of the result shows pixel p + d(p) of the image, with d the sum of the faded offsets.

    Args:
        anchors: `[k, 2]` y, x from 0 to 1.
        offsets: `[k, 2]` y, x in pixels.
        shape: (height, width).
        sigma: see GaussianDeform.
    """

    def __init__(self, anchors: np.ndarray, offsets: np.ndarray, shape: tuple[int, int], sigma: float) -> None:
        self.anchors, self.offsets, self.shape, self.sigma = anchors, offsets, shape, sigma

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Deform."""
        _check_size(img, *self.shape, "a deformation")
        # A Gaussian of both axes is the product of one of each.
        y = np.exp(-((np.arange(self.shape[0]) / self.shape[0] - self.anchors[:, :1]) ** 2) / self.sigma)
        x = np.exp(-((np.arange(self.shape[1]) / self.shape[1] - self.anchors[:, 1:]) ** 2) / self.sigma)
        rows, columns = (np.einsum("k,ky,kx->yx", self.offsets[:, axis], y, x, optimize=True) for axis in (0, 1))
        map_y = (rows + np.arange(self.shape[0])[:, None]).astype(np.float32)
        map_x = (columns + np.arange(self.shape[1])).astype(np.float32)

        def remap(image: np.ndarray) -> np.ndarray:
            moved: np.ndarray = opencv().remap(image, map_x, map_y, INTER_LINEAR, borderMode=BORDER_REPLICATE)
            return moved

        return restore_channels(in_single_precision(img, remap), img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Find the points p with p + d(p) = q, by repeating p = q - d(p).

        Raises:
            UsageError: the offsets are so large that the image folds over itself there.
        """
        points = _points(coords)
        wanted = points.astype(np.float64)[:, ::-1] - 0.5
        found = wanted
        for _ in range(_ROUNDS):
            before, found = found, wanted - self._offsets_at(found)
            if not len(found) or np.abs(found - before).max() < _CLOSE:
                return (found[:, ::-1] + 0.5).astype(points.dtype)
        raise UsageError(
            "GaussianDeform: the offsets fold the image over itself, so that coordinates have no single place",
            hint="choose a smaller randrange, or a larger sigma",
        )

    def _offsets_at(self, points: np.ndarray) -> np.ndarray:
        distance = points[:, None] / np.array(self.shape) - self.anchors
        moved: np.ndarray = np.exp(-(distance**2).sum(-1) / self.sigma) @ self.offsets
        return moved
