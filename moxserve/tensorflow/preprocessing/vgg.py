"""VGG's preprocessing: the smallest side to a size, a crop, a flip, means off (Simonyan and Zisserman, 1409.1556).

Constants and order are those of TF-Slim's `vgg_preprocessing`; PVANet has the same with other means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.images.crops import ResizedSideCrop
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.preprocessing.base import Augmentation, Output, check_integer, crop, resize
from moxserve.tensorflow.preprocessing.draws import Draws

__all__ = ["VggOptions", "VggPreprocessing"]

# Red, green, blue, of values from 0 to 255.
_MEANS = (123.68, 116.78, 103.94)


@dataclass(frozen=True)
class VggOptions:
    """Options of VGG's and PVANet's preprocessing.

    Attributes:
        resize_side_min: smallest side, in pixels, before the crop: of evaluation, and the least one of training.
        resize_side_max: the largest of training.
    """

    resize_side_min: int = 256
    resize_side_max: int = 512


class VggPreprocessing(Augmentation):
    """Resize the smallest side, crop, flip (training), subtract the means.

    Args:
        output: size and mode.
        options: sizes before the crop.
        means: of red, green and blue.
        family: name for messages.

    Raises:
        UsageError: the sizes make no sense, or the crop is larger than what it is cut out of.
    """

    def __init__(
        self,
        output: Output,
        options: VggOptions,
        means: tuple[float, float, float] = _MEANS,
        family: str = "vgg_preprocessing",
    ) -> None:
        super().__init__(family, output, channels=3)
        output.check_sides(family)
        check_integer(family, "resize_side_min", options.resize_side_min, 1)
        check_integer(
            family, "resize_side_max", options.resize_side_max, options.resize_side_min if output.training else 1
        )
        if min(output.height, output.width) > options.resize_side_min:
            raise UsageError(
                f"{family}: {output.height}x{output.width} pixels cannot be cut out of an image whose smallest side is "
                f"resize_side_min={options.resize_side_min}",
                hint=f"give resize_side_min={max(output.height, output.width)} or more, and a resize_side_max above it",
            )
        self.options = options
        self._means = means
        # A wide or tall crop fits into some images only: the graph tells of the others.
        if output.training and max(output.height, output.width) <= options.resize_side_min:
            self.geometry = ResizedSideCrop(
                output.height, output.width, options.resize_side_min, options.resize_side_max
            )

    def place(self, image: Any, draws: Draws) -> Any:
        """Resize, crop, flip."""
        side = tf.constant(self.options.resize_side_min)
        if self.output.training:
            side += draws.integer(self.options.resize_side_max + 1 - self.options.resize_side_min)
        image = self._resized(image, side)
        image = crop(image, self.output, self.family, draws if self.output.training else None)
        return draws.flipped(image) if self.output.training else image

    def _finished(self, images: Any, draws: Draws) -> Any:
        """Subtract the means."""
        return tf.cast(images, tf.float32) - tf.constant(self._means, tf.float32)

    def _resized(self, image: Any, side: Any) -> Any:
        sides = tf.cast(tf.shape(image)[-3:-1], tf.float32)
        scale = tf.cast(side, tf.float32) / tf.reduce_min(sides)
        return resize(image, tf.cast(tf.math.rint(sides * scale), tf.int32))
