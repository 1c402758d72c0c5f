"""What all augmentations share: an image is checked, placed (cropped, resized, flipped) and finished (colour, scale).

The two halves are apart so that the readers of images can do the first one while they decode, in source coordinates
(`Augmentation.geometry`), and leave the second one to the device that the model is on (`Augmentation.finish`).
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.images.geometry import Geometry
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.preprocessing.draws import Draws

__all__ = [
    "Augmentation",
    "Output",
    "central_crop_or_pad",
    "check_flag",
    "check_integer",
    "crop",
    "resize",
    "summarize",
]


@dataclass(frozen=True)
class Output:
    """What is asked of an augmentation.

    Attributes:
        height: of the result, in pixels; 0 keeps the size, where the family allows that.
        width: of the result.
        training: random augmentation, or the fixed preprocessing of evaluation.
    """

    height: int
    width: int
    training: bool

    def check_sides(self, family: str, least: int = 1) -> None:
        """Check that the sides are integers, at least `least`.

        Raises:
            UsageError: they are not.
        """
        for name, side in (("output_height", self.height), ("output_width", self.width)):
            check_integer(family, name, side, least)


def check_integer(family: str, name: str, value: Any, least: int) -> None:
    """Raise UsageError unless an option is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise UsageError(f"{family}: {name} must be an integer of at least {least}, got {value!r}")


def check_flag(family: str, **flags: Any) -> None:
    """Raise UsageError unless all options are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{family}: {name} must be True or False, got {value!r}")


class Augmentation(ABC):
    """What `get_data_augmentation_fn` returns: call it with one image.

    Args:
        family: name of the preprocessing, for messages and name scopes.
        output: size and mode.
        channels: how many channels images have; assumed, and checked when it runs, where the graph does not tell; None:
            any number.
        strict: refuse images that are known to have another number.

    Attributes:
        geometry: where the random crop and flip of TRAIN lie in the source image, for readers that crop while they
            decode; None in EVAL, PREDICT and EXPORT, whose numbers are exact, and where a reader could not follow.
    """

    geometry: Geometry | None = None

    def __init__(self, family: str, output: Output, channels: int | None, strict: bool = True) -> None:
        self.family = family
        self.output = output
        self._channels = channels
        self._strict = strict

    def __call__(self, image: Any, seed: Any = None) -> Any:
        """Augment one image.

        Args:
            image: `[height, width, channels]`, uint8 or float; sizes may be unknown while the graph is built.
            seed: `[2]` integers that all random numbers of this image follow; None: they follow the graph's seed.

        Returns:
            `[output_height, output_width, channels] float32`, with its static shape set.

        Raises:
            UsageError: this is no image, or a batch of images.
        """
        with tf1.name_scope(self.family):
            image = self._checked(image)
            draws = Draws(seed)
            finished = self._finished(self.place(image, draws)[tf.newaxis], draws)[0]
            finished.set_shape([self.output.height or None, self.output.width or None, image.shape[-1]])
            return finished

    @abstractmethod
    def place(self, image: Any, draws: Draws) -> Any:
        """Crop, resize and flip one image `[height, width, channels]` to the output size; not in TRAIN: or a batch."""

    @abstractmethod
    def _finished(self, images: Any, draws: Draws) -> Any:
        """Do what `finish` does."""

    def finish(self, images: Any, seed: Any = None) -> Any:
        """Do what remains after `place`, or after a reader that used `geometry`, for a batch.

        Each image has random numbers of its own.

        Args:
            images: `[batch, output_height, output_width, channels]`, of the dtype that the source image has.
            seed: `[2]` integers that the random numbers follow; None: they follow the graph's seed.

        Returns:
            The same shape, float32.
        """
        with tf1.name_scope(self.family):
            return self._finished(images, Draws(seed))

    def __repr__(self) -> str:
        mode = "training" if self.output.training else "evaluation"
        return f"{self.family}({self.output.height}x{self.output.width}, {mode})"

    def _checked(self, image: Any) -> Any:
        image = tf.convert_to_tensor(image)
        if not (image.dtype.is_floating or image.dtype.is_integer):
            hint = "decode it first: tf.io.decode_image(data, channels=3)" if image.dtype == tf.string else None
            raise UsageError(f"{self.family}: expected an image of numbers, got {image.dtype.name}", hint=hint)
        if image.shape.rank not in (None, 3):
            raise UsageError(
                f"{self.family}: expected one image [height, width, channels], got a tensor of shape {image.shape}",
                hint="map it over a batch: tf.map_fn(fn, images, fn_output_signature=tf.float32)",
            )
        if self._strict and not image.shape[-1:].is_compatible_with([self._channels]):
            raise UsageError(f"{self.family}: expected {self._channels} channels, got an image of shape {image.shape}")
        if image.shape.rank is None or (self._channels is not None and image.shape[-1] is None):
            # Checked when it runs: decoders do not always tell.
            image = tf.ensure_shape(image, [None, None, self._channels])
        return image


def summarize(wanted: bool, name: str, images: Any) -> None:
    """Write an image summary, where one can be written: in a graph, not in a function of tf.data.

    Args:
        wanted: whether the user asked for summaries.
        name: of the summary.
        images: `[batch, height, width, channels]`, or one image without the batch.
    """
    if not wanted or tf1.executing_eagerly() or tf1.get_default_graph().building_function:
        return
    tf1.summary.image(name, images if images.shape.rank == 4 else images[tf.newaxis])


def resize(image: Any, size: Sequence[Any] | Any, method: str = "bilinear") -> Any:
    """Resize as TensorFlow 1 did: output pixel i reads source coordinate i * in / out.

    Args:
        image: `[height, width, channels]`, or a batch of them.
        size: height and width of the result.
        method: `bilinear`, `nearest`, `bicubic` or `area`.

    Returns:
        float32 for all methods but `nearest`, which keeps the dtype.
    """
    return tf1.image.resize(image, size, method)


def crop(image: Any, output: Output, family: str, draws: Draws | None = None) -> Any:
    """Cut a window out; fails when it runs where the window is larger than the image.

    Args:
        image: `[height, width, channels]`, or a batch of them, which all get the same window.
        output: size of the window.
        family: name for the message.
        draws: where the window is; None: in the middle.
    """
    size = [output.height, output.width]
    room = tf.shape(image)[-3:-1] - size
    message = f"{family}: the crop {size[0]}x{size[1]} is larger than the image that it is taken from"
    with tf.control_dependencies([tf1.Assert(tf.reduce_all(room >= 0), [message, tf.shape(image)])]):
        room = tf.identity(room)
    top, left = tf.unstack(room // 2) if draws is None else [draws.integer(most + 1) for most in tf.unstack(room)]
    window = image[..., top : top + size[0], left : left + size[1], :]
    window.set_shape([*image.shape[:-3], *size, image.shape[-1]])
    return window


def central_crop_or_pad(image: Any, output: Output) -> Any:
    """Cut the middle of an image out, or put it into the middle of zeros, each side for itself.

    slim gives the width as height and the height as width here; that would make the result's sides not those asked for.
    """
    return tf.image.resize_with_crop_or_pad(image, output.height, output.width)
