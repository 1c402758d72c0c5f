"""Augmentors of other libraries, which the user has installed."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import ImageAugmentor
from moxserve.dataflow.imgaug.transform import Transform, TransformFactory
from moxserve.errors import UsageError

__all__ = ["Albumentations", "IAAugmentor"]


def _library(name: str, wrapper: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UsageError(f"{wrapper} needs the library {name}: {e}", hint=f"pip install {name}") from e


class IAAugmentor(ImageAugmentor):
    """An augmenter of the library imgaug (github.com/aleju/imgaug): `IAAugmentor(iaa.Fliplr(0.5))`.

    It works on uint8 images. Coordinates are as exact as that library is.

    Args:
        augmentor: the augmenter, or a sequence of the library's.
    """

    def __init__(self, augmentor: Any) -> None:
        if not hasattr(augmentor, "to_deterministic"):
            raise UsageError(f"IAAugmentor expected an augmenter of imgaug, got {type(augmentor).__name__}")
        self._aug = augmentor

    def get_transform(self, img: Any) -> Transform:
        """Let the library draw, from a seed of ours."""
        seed = int(self.rng.randint(2**31))
        fixed = self._aug.to_deterministic()
        # Of the versions, the older ones have the second name only.
        for name in ("seed_", "reseed"):
            if hasattr(fixed, name):
                getattr(fixed, name)(seed, deterministic_too=True)
                break
        shape = tuple(img.shape)
        return TransformFactory("IAAugmentor", fixed.augment_image, lambda coords: _keypoints(fixed, coords, shape))


def _keypoints(augmenter: Any, coords: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    library = _library("imgaug", "IAAugmentor")
    points = library.KeypointsOnImage([library.Keypoint(x=x, y=y) for x, y in coords], shape=shape)
    moved = augmenter.augment_keypoints([points])[0].keypoints
    return np.array([[point.x, point.y] for point in moved], coords.dtype).reshape(-1, 2)


class Albumentations(ImageAugmentor):
    """A transform of the library albumentations: `Albumentations(A.RandomRotate90(p=1))`.

    Coordinates are not supported.

    Args:
        augmentor: the transform, or a composition of the library's.
    """

    def __init__(self, augmentor: Any) -> None:
        library = _library("albumentations", "Albumentations")
        # What it drew for one image, it can do with another one.
        self._replay = library.ReplayCompose([augmentor])
        self._aug = augmentor

    def get_transform(self, img: Any) -> Transform:
        """Let the library draw, from a seed of ours where it takes one."""
        if hasattr(self._replay, "set_random_seed"):
            self._replay.set_random_seed(int(self.rng.randint(2**31)))
        drawn: dict[str, Any] = {}

        def apply_image(image: np.ndarray) -> np.ndarray:
            if drawn:
                result = type(self._replay).replay(drawn["replay"], image=image)
            else:
                result = self._replay(image=image)
                drawn["replay"] = result["replay"]
            changed: np.ndarray = result["image"]
            return changed

        return TransformFactory("Albumentations", apply_image)
