"""Augmentors: what draws at random how to change an image, and makes a transform of it.

An augmentor subclass defines `get_transform(img)`. tensorpack's older form works, too: `_get_augment_params(img)`,
`_augment(img, params)` and `_augment_coords(coords, params)`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moxserve.dataflow.imgaug.pixels import check_image
from moxserve.dataflow.imgaug.transform import (
    LazyTransform,
    PhotometricTransform,
    Transform,
    TransformFactory,
    TransformList,
)
from moxserve.dataflow.seeds import get_rng, is_fixed, next_number
from moxserve.errors import UsageError

__all__ = [
    "Augmentor",
    "AugmentorList",
    "ImageAugmentor",
    "ImagePlaceholder",
    "PhotometricAugmentor",
    "check_augmentors",
]


class ImagePlaceholder(NamedTuple):
    """Stands for an image where only its shape matters, as for the geometric augmentors.

    Attributes:
        shape: of the image.
    """

    shape: tuple[int, ...]


class ImageAugmentor:
    """Base of all augmentors.

    Images are `[height, width]` or `[height, width, channels]`; uint8, or floating with values from 0 to 1 or to 255.
    A uint8 image stays uint8 (rounded and clipped) unless an augmentor says otherwise.

    `rng` is the augmentor's own stream of random numbers (see `moxserve.dataflow.seeds`): other augmentors, and other
    workers of a flow, have other ones.
    """

    _number: int
    _rng: np.random.RandomState
    _pid: int

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Number the augmentor, whether or not a subclass calls our constructor."""
        augmentor = super().__new__(cls)
        augmentor._number = next_number()
        ImageAugmentor.reset_state(augmentor)
        return augmentor

    def __init__(self) -> None:
        """Nothing to do; subclasses may call it."""

    @property
    def rng(self) -> np.random.RandomState:
        """The generator."""
        if self._pid != os.getpid():
            # A forked process must not draw what its siblings draw. The workers of flows see to a fixed seed.
            self._pid = os.getpid()
            if not is_fixed():
                self._rng.seed()
        return self._rng

    @rng.setter
    def rng(self, value: np.random.RandomState) -> None:
        self._rng, self._pid = value, os.getpid()

    def reset_state(self) -> None:
        """Start the random numbers again. Flows do it before they iterate."""
        self.rng = get_rng(self._number)

    def get_transform(self, img: Any) -> Transform:
        """Draw what is to be done with an image.

        Args:
            img: the image; for geometric augmentors anything with its `shape`.
        """
        augment = getattr(self, "_augment", None)
        if augment is None:
            raise TypeError(f"{type(self).__name__} defines neither get_transform nor _augment")
        params = self._get_augment_params(img)
        if isinstance(params, Transform):
            return params
        move = getattr(self, "_augment_coords", lambda coords, _: coords)
        return TransformFactory(repr(self), lambda image: augment(image, params), lambda coords: move(coords, params))

    def _get_augment_params(self, img: Any) -> Any:
        """Draw the parameters of `_augment`."""
        return None

    def augment(self, img: np.ndarray) -> np.ndarray:
        """Draw, and change an image.

        Args:
            img: the image; not changed, but the result may be the same array, or a view of it.

        Raises:
            UsageError: this is no image.
        """
        return self.get_transform(check_image(img)).apply_image(img)

    # tensorpack's older names.

    def augment_return_params(self, img: np.ndarray) -> tuple[np.ndarray, Transform]:
        """Draw, and return the changed image and the transform."""
        transform = self.get_transform(check_image(img))
        return transform.apply_image(img), transform

    def augment_with_params(self, img: np.ndarray, params: Transform) -> np.ndarray:
        """Change an image as another one was."""
        return params.apply_image(check_image(img))

    def augment_coords(self, coords: np.ndarray, params: Transform) -> np.ndarray:
        """Tell where points of an image went."""
        return params.apply_coords(coords)

    def _init(self, params: Mapping[str, Any] | None = None) -> None:
        """Make attributes of a constructor's arguments, as tensorpack's augmentors do: `self._init(locals())`."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Draw uniformly from [low, high), or from [0, low)."""
        low, high = (0, low) if high is None else (low, high)
        return self.rng.uniform(low, high, size)

    def __repr__(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = getattr(self, name, parameter.default)
            if name != "self" and value is not parameter.default:
                parts.append(f"{name}={value!r}")
        return f"imgaug.{type(self).__name__}({', '.join(parts)})"


Augmentor = ImageAugmentor


class PhotometricAugmentor(ImageAugmentor):
    """Base of the augmentors that change pixels and move none: `_get_augment_params(img)`, `_augment(img, params)`."""

    def get_transform(self, img: Any) -> Transform:
        """Draw the parameters."""
        params = self._get_augment_params(img)
        return PhotometricTransform(lambda image: self._augment(image, params), repr(self))

    def _augment(self, img: np.ndarray, params: Any) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} defines no _augment")


def check_augmentors(augmentors: Any, owner: str) -> list[ImageAugmentor]:
    """Return a list of augmentors.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(augmentors, Sequence):
        raise UsageError(f"{owner} expected a list of augmentors, got {type(augmentors).__name__}")
    for augmentor in augmentors:
        if not isinstance(augmentor, ImageAugmentor):
            raise UsageError(f"{owner} expected augmentors, got {type(augmentor).__name__}")
    return list(augmentors)


class AugmentorList(ImageAugmentor):
    """Augmentors, one after the other.

    Args:
        augmentors: a list of augmentors.
    """

    def __init__(self, augmentors: Sequence[ImageAugmentor]) -> None:
        self.augmentors = check_augmentors(augmentors, "AugmentorList")

    def reset_state(self) -> None:
        """Start the random numbers of all."""
        super().reset_state()
        for augmentor in self.augmentors:
            augmentor.reset_state()

    def get_transform(self, img: Any) -> Transform:
        """Draw for the first augmentor; the others draw when `apply_image` brings them their image."""
        first = [augmentor.get_transform(img) for augmentor in self.augmentors[:1]]
        return TransformList([*first, *(LazyTransform(augmentor.get_transform) for augmentor in self.augmentors[1:])])
