"""Flows of image files, and flows that augment images. Augmentors are in `imgaug`; batches of many images decode faster
in `moxserve.images`.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow, ProxyDataFlow, RNGDataFlow
from moxserve.dataflow.batch import component
from moxserve.dataflow.common import MapData
from moxserve.dataflow.imgaug.base import AugmentorList, ImageAugmentor
from moxserve.dataflow.imgaug.pixels import check_image
from moxserve.errors import DataError, UsageError
from moxserve.file import read
from moxserve.images.decode import CHANNELS, cut, decode
from moxserve.images.geometry import Window

__all__ = ["AugmentImageComponent", "AugmentImageComponents", "AugmentImageCoordinates", "ImageFromFile"]

_log = logging.getLogger(__name__)
# Errors that are told: the first ones, then one in many.
_FIRST, _EVERY = 10, 100


class ImageFromFile(RNGDataFlow):
    """Images of files: `[image]`, `[height, width, channel] uint8`.

    Args:
        files: paths; JPEG, PNG, GIF, BMP or WebP, told by content. The orientation in EXIF is not applied, as
            TensorFlow does not apply it.
        channel: 3 for RGB, 1 for gray, 4 for RGB and alpha.
        resize: height and width that all are resized to, or one number for both; bilinear, the aspect ratio is not
            kept. None leaves them as they are.
        shuffle: in another order each pass.

    Raises:
        UsageError: there are no files, or `channel` or `resize` is none of these.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        channel: int = 3,
        resize: int | Sequence[int] | None = None,
        shuffle: bool = False,
    ) -> None:
        if isinstance(files, (str, bytes)) or not len(files):
            raise UsageError(f"ImageFromFile expected a list of files, got {files!r}")
        if channel not in CHANNELS:
            raise UsageError(f"ImageFromFile: channel={channel!r}: expected 1 (gray), 3 (RGB) or 4 (RGB and alpha)")
        self.files = [os.fspath(f) for f in files]
        self.channel, self.shuffle = channel, shuffle
        self.resize = _size(resize)

    def __len__(self) -> int:
        """The number of files."""
        return len(self.files)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the images.

        Raises:
            DataError: a file is not there, or no image that can be decoded; names it.
        """
        for i in self.rng.permutation(len(self.files)).tolist() if self.shuffle else range(len(self.files)):
            yield [self._image(self.files[i])]

    def _image(self, path: str) -> np.ndarray:
        try:
            data = read(path, binary=True)
        except DataError:  # names the file already
            raise
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        image = decode(data, self.channel, path)
        if self.resize is None or image.shape[:2] == self.resize:
            return image
        height, width = image.shape[:2]
        return cut(image, Window(0, 0, height, width, *self.resize, flip=False))


def _size(resize: int | Sequence[int] | None) -> tuple[int, int] | None:
    if resize is None:
        return None
    size = (resize, resize) if isinstance(resize, (int, np.integer)) else tuple(resize)
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"ImageFromFile: resize={resize!r}: expected a number of pixels, or (height, width)")
    return int(size[0]), int(size[1])


class _Augmenting(MapData):
    """Changes components of each datapoint; drops it, and tells, where that fails and errors are caught."""

    def __init__(
        self, ds: DataFlow, augmentors: ImageAugmentor | Sequence[ImageAugmentor], copy: bool, catch: bool
    ) -> None:
        ProxyDataFlow.__init__(self, ds)
        one = isinstance(augmentors, ImageAugmentor)
        self.augs = (
            augmentors
            if isinstance(augmentors, AugmentorList)
            else AugmentorList(
                [augmentors] if one else augmentors  # type: ignore[list-item, arg-type]
            )
        )
        self._copy, self._catch = copy, catch
        self._errors = 0

    def reset_state(self) -> None:
        """Reset the flow inside and the augmentors."""
        super().reset_state()
        self.augs.reset_state()

    @abstractmethod
    def _augment(self, dp: Any) -> None:
        """Change a datapoint, which is a list or a dict of our own."""

    def func(self, dp: Any) -> Any:
        """Augment a datapoint; None to drop it."""
        if isinstance(dp, tuple):
            dp = list(dp)
        try:
            self._augment(dp)
        except Exception:
            if not self._catch:
                raise
            self._count_error()
            return None
        return dp

    def _count_error(self) -> None:
        self._errors += 1
        if self._errors <= _FIRST or self._errors % _EVERY == 0:
            _log.exception("%s dropped a datapoint: error %d", type(self).__name__, self._errors)

    def _image(self, dp: Any, index: int | str) -> np.ndarray:
        image = check_image(component(dp, index))
        # Augmentors may work in place, and the flow inside may yield the same array again.
        return image.copy() if self._copy else image

    def _coords(self, dp: Any, index: int | str) -> np.ndarray:
        coords = component(dp, index)
        if not isinstance(coords, np.ndarray) or coords.dtype.kind != "f" or coords.shape[1:] != (2,):
            got = f"{coords.dtype} {coords.shape}" if isinstance(coords, np.ndarray) else type(coords).__name__
            raise DataError(f"component {index!r}: expected coordinates, a floating array [points, 2], got {got}")
        return coords.copy() if self._copy else coords


class AugmentImageComponent(_Augmenting):
    """Augments the image of each datapoint.

    Args:
        ds: the flow.
        augmentors: a list of augmentors, one augmentor, or an AugmentorList.
        index: of the image's component, or its key.
        copy: augment a copy of the image; without, augmentors may change what the flow yielded.
        catch_exceptions: drop datapoints that cannot be augmented; the first ten errors, and then every hundredth, are
            logged. `len` does not know of dropped ones.

    Raises:
        UsageError: `augmentors` are none.
    """

    def __init__(
        self,
        ds: DataFlow,
        augmentors: ImageAugmentor | Sequence[ImageAugmentor],
        index: int | str = 0,
        copy: bool = True,
        catch_exceptions: bool = False,
    ) -> None:
        super().__init__(ds, augmentors, copy, catch_exceptions)
        self._index = index

    def _augment(self, dp: Any) -> None:
        dp[self._index] = self.augs.augment(self._image(dp, self._index))


class AugmentImageCoordinates(_Augmenting):
    """Augments the image of each datapoint, and moves points with it.

    Args:
        ds: the flow.
        augmentors: a list of augmentors, one augmentor, or an AugmentorList.
        img_index: index or key of the image.
        coords_index: of the points: a floating array `[points, 2]` of x and y.
        copy: work on copies.
        catch_exceptions: as AugmentImageComponent.

    Raises:
        UsageError: `augmentors` are none.
    """

    def __init__(
        self,
        ds: DataFlow,
        augmentors: ImageAugmentor | Sequence[ImageAugmentor],
        img_index: int | str = 0,
        coords_index: int | str = 1,
        copy: bool = True,
        catch_exceptions: bool = False,
    ) -> None:
        super().__init__(ds, augmentors, copy, catch_exceptions)
        self._img_index, self._coords_index = img_index, coords_index

    def _augment(self, dp: Any) -> None:
        image, coords = self._image(dp, self._img_index), self._coords(dp, self._coords_index)
        transform = self.augs.get_transform(image)
        # The image first: each augmentor of a list draws when it gets its image.
        dp[self._img_index] = transform.apply_image(image)
        dp[self._coords_index] = transform.apply_coords(coords)


class AugmentImageComponents(_Augmenting):
    """Augments several images of each datapoint alike, such as an image and its mask, and points with them.

    Args:
        ds: the flow.
        augmentors: a list of augmentors, one augmentor, or an AugmentorList.
        index: indices or keys of the images; what is drawn depends on the first one's shape.
        coords_index: of components with points: floating arrays `[points, 2]` of x and y.
        copy: work on copies.
        catch_exceptions: as AugmentImageComponent.

    Raises:
        UsageError: `augmentors` are none, or `index` is empty.
    """

    def __init__(
        self,
        ds: DataFlow,
        augmentors: ImageAugmentor | Sequence[ImageAugmentor],
        index: Sequence[int | str] = (0, 1),
        coords_index: Sequence[int | str] = (),
        copy: bool = True,
        catch_exceptions: bool = False,
    ) -> None:
        super().__init__(ds, augmentors, copy, catch_exceptions)
        if not index:
            raise UsageError("AugmentImageComponents needs the index of at least one image")
        self._indices, self._coords_indices = tuple(index), tuple(coords_index)

    def _augment(self, dp: Any) -> None:
        images = {i: self._image(dp, i) for i in self._indices}
        coords = {i: self._coords(dp, i) for i in self._coords_indices}
        transform = self.augs.get_transform(images[self._indices[0]])
        for i, image in images.items():
            dp[i] = transform.apply_image(image)
        for i, points in coords.items():
            dp[i] = transform.apply_coords(points)
