"""Augmentors made of others, or of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.imgaug.base import ImageAugmentor, check_augmentors
from moxserve.dataflow.imgaug.pixels import check_probability
from moxserve.dataflow.imgaug.transform import (
    LazyTransform,
    NoOpTransform,
    Transform,
    TransformFactory,
    TransformList,
)
from moxserve.errors import UsageError

__all__ = ["Identity", "MapImage", "RandomApplyAug", "RandomChooseAug", "RandomOrderAug"]


class Identity(ImageAugmentor):
    """Nothing."""

    def get_transform(self, img: Any) -> NoOpTransform:
        """Do nothing."""
        return NoOpTransform()


class RandomApplyAug(ImageAugmentor):
    """Apply an augmentor with a probability.

    Args:
        aug: the augmentor.
        prob: the probability.
    """

    def __init__(self, aug: ImageAugmentor, prob: float) -> None:
        (self.aug,) = check_augmentors([aug], "RandomApplyAug")
        self.prob = check_probability("prob", prob)

    def reset_state(self) -> None:
        """Start the random numbers of both."""
        super().reset_state()
        self.aug.reset_state()

    def get_transform(self, img: Any) -> Transform:
        """Draw whether."""
        return self.aug.get_transform(img) if self.rng.uniform() < self.prob else NoOpTransform()


class _OfSeveral(ImageAugmentor):
    aug_lists: list[ImageAugmentor]

    def reset_state(self) -> None:
        """Start the random numbers of all."""
        super().reset_state()
        for augmentor in self.aug_lists:
            augmentor.reset_state()


class RandomChooseAug(_OfSeveral):
    """Apply one of several augmentors.

    Args:
        aug_lists: augmentors, or pairs (augmentor, probability).
    """

    def __init__(self, aug_lists: Sequence[Any]) -> None:
        if not isinstance(aug_lists, Sequence) or not len(aug_lists):
            raise UsageError("RandomChooseAug expected a list of augmentors, or of (augmentor, probability)")
        if all(isinstance(item, (tuple, list)) and len(item) == 2 for item in aug_lists):
            self.prob = [check_probability("a probability of RandomChooseAug", item[1]) for item in aug_lists]
            aug_lists = [item[0] for item in aug_lists]
        else:
            self.prob = [1 / len(aug_lists)] * len(aug_lists)
        if abs(sum(self.prob) - 1) > 1e-6:
            raise UsageError(f"RandomChooseAug: the probabilities must add up to 1, got {sum(self.prob):g}")
        self.aug_lists = check_augmentors(aug_lists, "RandomChooseAug")

    def get_transform(self, img: Any) -> Transform:
        """Draw which."""
        return self.aug_lists[self.rng.choice(len(self.aug_lists), p=self.prob)].get_transform(img)


class RandomOrderAug(_OfSeveral):
    """Apply all augmentors in a random order.

    Args:
        aug_lists: the augmentors; they may change the shape of images.
    """

    def __init__(self, aug_lists: Sequence[ImageAugmentor]) -> None:
        self.aug_lists = check_augmentors(aug_lists, "RandomOrderAug")

    def get_transform(self, img: Any) -> TransformList:
        """Draw the order."""
        order = self.rng.permutation(len(self.aug_lists))
        return TransformList([LazyTransform(self.aug_lists[index].get_transform) for index in order])


class MapImage(ImageAugmentor):
    """Apply a function.

    Args:
        func: image -> image.
        coord_func: coordinates -> coordinates; without it, coordinates are refused.
    """

    def __init__(
        self,
        func: Callable[[np.ndarray], np.ndarray],
        coord_func: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        if not callable(func) or not (coord_func is None or callable(coord_func)):
            raise UsageError("MapImage expected functions")
        self.func, self.coord_func = func, coord_func

    def get_transform(self, img: Any) -> TransformFactory:
        """Make the transform."""
        return TransformFactory("MapImage without coord_func", self.func, self.coord_func)
