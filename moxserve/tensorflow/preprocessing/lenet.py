"""LeNet's preprocessing: the middle of the image, scaled to [-1, 1); the same in training (TF-Slim's constants)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.images.crops import CenterWindow
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.preprocessing.base import Augmentation, Output, central_crop_or_pad
from moxserve.tensorflow.preprocessing.draws import Draws

__all__ = ["LenetOptions", "LenetPreprocessing"]


@dataclass(frozen=True)
class LenetOptions:
    """There are none."""


class LenetPreprocessing(Augmentation):
    """Crop or pad around the middle, then (x - 128) / 128. Any number of channels.

    Args:
        output: size and mode.
        options: none.
    """

    def __init__(self, output: Output, options: LenetOptions) -> None:
        super().__init__("lenet_preprocessing", output, channels=None)
        output.check_sides(self.family)
        if output.training:
            self.geometry = CenterWindow(output.height, output.width)

    def place(self, image: Any, draws: Draws) -> Any:
        """Crop or pad."""
        return central_crop_or_pad(image, self.output)

    def _finished(self, images: Any, draws: Draws) -> Any:
        """Scale."""
        return (tf.cast(images, tf.float32) - 128.0) / 128.0
