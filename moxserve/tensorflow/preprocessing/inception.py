"""Inception's preprocessing: a random part of the image, stretched, with changed colours, in [-1, 1].

Constants and order are those of TF-Slim's `inception_preprocessing` (Szegedy et al., 1409.4842 section 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.images.crops import RandomResizedCrop, StretchAndFlip
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.preprocessing import colors
from moxserve.tensorflow.preprocessing.base import Augmentation, Output, check_flag, resize, summarize
from moxserve.tensorflow.preprocessing.draws import Draws

__all__ = ["InceptionOptions", "InceptionPreprocessing"]

_OBJECT_COVERED = 0.1
_ASPECT_RATIOS = (0.75, 1.33)
_AREAS = (0.05, 1.0)
_ATTEMPTS = 100
_METHODS = ("bilinear", "nearest", "bicubic", "area")

# Colour changes on values from 0 to 1, by their initials: what changes, and the range of the random number.
_CHANGES: dict[str, tuple[Any, float, float]] = {
    "B": (colors.brightness, -32 / 255, 32 / 255),
    "S": (colors.saturation, 0.5, 1.5),
    "H": (colors.hue, -0.2, 0.2),
    "C": (colors.contrast, 0.5, 1.5),
}
_FAST_ORDER = "BS"
_ORDERS = ("BSHC", "SBCH", "CHBS", "HSCB")


@dataclass(frozen=True)
class InceptionOptions:
    """Options of Inception's preprocessing.

    Attributes:
        bbox: objects of which the random crop must cover a tenth: `[1, boxes, 4] float32`, each ymin, xmin, ymax, xmax
            from 0 to 1; None: the whole image is the object.
        fast_mode: training: bilinear resizing, brightness and saturation only; otherwise one of four ways to resize and
            one of four orders of brightness, saturation, hue and contrast.
        crop_image: cut a part out; otherwise the whole image is resized.
        central_crop: another name of `crop_image`, for evaluation.
        central_fraction: how much of each side evaluation keeps, above 0, at most 1.
        add_image_summaries: training: write image summaries of the steps.
    """

    bbox: Any = None
    fast_mode: bool = True
    crop_image: bool = True
    central_crop: bool = True
    central_fraction: float = 0.875
    add_image_summaries: bool = True


class InceptionPreprocessing(Augmentation):
    """Training: random crop, resize, flip, colour; evaluation: central crop, resize. The aspect ratio is not kept.

    Values of images that are not float32 are scaled from the range of their dtype to [0, 1]; float32 images must be in
    [0, 1].

    Args:
        output: size and mode; in evaluation a side of 0 skips the resizing.
        options: see there.
    """

    def __init__(self, output: Output, options: InceptionOptions) -> None:
        super().__init__("inception_preprocessing", output, channels=3, strict=output.training)
        output.check_sides(self.family, least=1 if output.training else 0)
        if not (output.height and output.width):
            self.output = Output(0, 0, output.training)
        check_flag(
            self.family,
            fast_mode=options.fast_mode,
            crop_image=options.crop_image,
            central_crop=options.central_crop,
            add_image_summaries=options.add_image_summaries,
        )
        fraction = options.central_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise UsageError(f"{self.family}: central_fraction must be above 0 and at most 1, got {fraction!r}")
        self.options = options
        self._summaries = options.add_image_summaries and output.training
        # Another way to resize, or boxes that are known only later, cannot be followed by a reader.
        if output.training and options.fast_mode and options.bbox is None:
            self.geometry = self._geometry()

    def _geometry(self) -> Any:
        size = self.output.height, self.output.width
        if not self.options.crop_image:
            return StretchAndFlip(*size)
        return RandomResizedCrop(*size, areas=_AREAS, aspect_ratios=_ASPECT_RATIOS, least_covered=_OBJECT_COVERED)

    def place(self, image: Any, draws: Draws) -> Any:
        """Crop, resize and flip; returns values from 0 to 1."""
        return self._place_random(image, draws) if self.output.training else self._place_fixed(image)

    def _finished(self, images: Any, draws: Draws) -> Any:
        """Change the colours in training, then scale [0, 1] to [-1, 1]."""
        images = tf.image.convert_image_dtype(images, tf.float32)
        if self.output.training:
            images = tf.clip_by_value(self._distorted(images, draws), 0.0, 1.0)
            summarize(self._summaries, "final_distorted_image", images)
        return (images - 0.5) * 2.0

    def _place_fixed(self, image: Any) -> Any:
        image = tf.image.convert_image_dtype(image, tf.float32)
        if self.options.crop_image and self.options.central_crop:
            image = tf.image.central_crop(image, self.options.central_fraction)
        return resize(image, [self.output.height, self.output.width]) if self.output.height else image

    def _place_random(self, image: Any, draws: Draws) -> Any:
        if self.options.crop_image:
            image = self._cropped(image, draws)
        image = tf.image.convert_image_dtype(image, tf.float32)
        size = [self.output.height, self.output.width]
        if self.options.fast_mode:
            image = resize(image, size)
        else:
            choice = draws.integer(len(_METHODS))
            image = tf.switch_case(choice, [lambda way=way: resize(image, size, way) for way in _METHODS])
        image.set_shape([*size, 3])
        summarize(self._summaries, "cropped_resized_image", image)
        return draws.flipped(image)

    def _cropped(self, image: Any, draws: Draws) -> Any:
        boxes = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        if self.options.bbox is not None:
            boxes = tf.convert_to_tensor(self.options.bbox, tf.float32)
        self._summarize_boxes("image_with_bounding_boxes", image, boxes)
        begin, size, chosen = draws.part(
            tf.shape(image),
            boxes,
            min_object_covered=_OBJECT_COVERED,
            aspect_ratio_range=_ASPECT_RATIOS,
            area_range=_AREAS,
            max_attempts=_ATTEMPTS,
            use_image_if_no_bounding_boxes=True,
        )
        self._summarize_boxes("images_with_distorted_bounding_box", image, chosen)
        image = tf.slice(image, begin, size)
        image.set_shape([None, None, 3])
        return image

    def _summarize_boxes(self, name: str, image: Any, boxes: Any) -> None:
        if self._summaries:
            image = tf.image.convert_image_dtype(image, tf.float32)[tf.newaxis]
            summarize(True, name, tf.image.draw_bounding_boxes(image, boxes, tf.constant([[1.0, 0.0, 0.0]])))

    def _distorted(self, images: Any, draws: Draws) -> Any:
        if self.options.fast_mode:
            return _changed(images, _FAST_ORDER, draws)
        # Each image goes one of the ways: split the batch, change each part, put it together again.
        count = tf.shape(images)[0]
        way = draws.uniform([count], 0, len(_ORDERS), tf.int32)
        parts = tf.dynamic_partition(images, way, len(_ORDERS))
        rows = tf.dynamic_partition(tf.range(count), way, len(_ORDERS))
        changed = [_changed(part, order, draws) for part, order in zip(parts, _ORDERS, strict=True)]
        together = tf.dynamic_stitch(rows, changed)
        together.set_shape(images.shape)
        return together


def _changed(images: Any, order: str, draws: Draws) -> Any:
    for initial in order:
        change, lower, upper = _CHANGES[initial]
        images = change(images, colors.random_values(draws, images, lower, upper))
    return images
