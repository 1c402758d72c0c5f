"""CifarNet's preprocessing: a crop out of a padded image, colour, standardization of each image (TF-Slim's constants).

Nothing is resized: images smaller than the output less the padding are refused in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.images.crops import PaddedCrop
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.preprocessing import colors
from moxserve.tensorflow.preprocessing.base import (
    Augmentation,
    Output,
    central_crop_or_pad,
    check_flag,
    check_integer,
    crop,
    summarize,
)
from moxserve.tensorflow.preprocessing.draws import Draws

__all__ = ["CifarnetOptions", "CifarnetPreprocessing"]

# On values from 0 to 255.
_BRIGHTNESS = 63.0
_CONTRAST = (0.2, 1.8)


@dataclass(frozen=True)
class CifarnetOptions:
    """Options of CifarNet's preprocessing.

    Attributes:
        padding: zeros on each side before the random crop of training, in pixels.
        add_image_summaries: write image summaries of input and result.
    """

    padding: int = 4
    add_image_summaries: bool = True


class CifarnetPreprocessing(Augmentation):
    """Training: pad, crop, flip, brightness, contrast; evaluation: the middle; both: standardize. Any channels.

    Args:
        output: size and mode.
        options: padding and summaries.
    """

    def __init__(self, output: Output, options: CifarnetOptions) -> None:
        super().__init__("cifarnet_preprocessing", output, channels=3, strict=False)
        output.check_sides(self.family)
        check_integer(self.family, "padding", options.padding, 0)
        check_flag(self.family, add_image_summaries=options.add_image_summaries)
        self.options = options
        if output.training:
            self.geometry = PaddedCrop(output.height, output.width, options.padding)

    def place(self, image: Any, draws: Draws) -> Any:
        """Pad, crop and flip in training; otherwise crop or pad around the middle."""
        summarize(self.options.add_image_summaries, "image", image)
        if not self.output.training:
            return central_crop_or_pad(image, self.output)
        pad = self.options.padding
        padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
        return draws.flipped(crop(padded, self.output, self.family, draws))

    def _finished(self, images: Any, draws: Draws) -> Any:
        """Change the colours in training, then standardize: (x - mean) / max(deviation, 1 / sqrt(values))."""
        images = tf.cast(images, tf.float32)
        if self.output.training:
            images = colors.brightness(images, colors.random_values(draws, images, -_BRIGHTNESS, _BRIGHTNESS))
            images = colors.contrast(images, colors.random_values(draws, images, *_CONTRAST))
        name = "distorted_image" if self.output.training else "resized_image"
        summarize(self.options.add_image_summaries, name, images)
        return tf.image.per_image_standardization(images)
