"""What happens to images between the user and a network: size, values, layout.

The rules, in their order:

1. Images are `[batch, height, width, channels]`. In PREDICT and EXPORT they get the size asked for.
2. The preprocessing function sees the batch. The default one knows two kinds of images: integers are raw pixels from 0
   to 255 and get what the network's evaluation gives them; floats come from `get_data_augmentation_fn` and stay.
3. The network takes floats in its own layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.calls import call_with_mode
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.preprocessing.base import Augmentation, resize
from moxserve.tensorflow.preprocessing.draws import Draws
from moxserve.tensorflow.preprocessing.factory import get_data_augmentation_fn
from moxserve.tensorflow.preprocessing.keys import preprocessing_of

__all__ = ["Preparation", "default_preprocess_fn"]

# VGG's evaluation cuts 224 of 256 pixels out; larger outputs are cut out of images that are larger by as much.
_VGG_SIDE, _VGG_CROP = 256, 224
_SIDED = ("vgg_preprocessing", "pvanet_preprocessing")


def default_preprocess_fn(images: Any, run_mode: str, name: str, size: tuple[int, int] | None = None) -> Any:
    """Preprocess a batch as the evaluation of a network does; this is what `get_model_fn` does by default.

    Integers of any dtype are raw pixels from 0 to 255. Images of `size` are only scaled; others are first resized, cut
    or padded as `get_data_augmentation_fn` does for that network in EVAL. Nothing is random, in no mode. Floats are
    taken as preprocessed already, by `get_data_augmentation_fn` in the input_fn; where `size` differs they are resized.

    Args:
        images: `[batch, height, width, channels]`.
        run_mode: one of `ModeKeys`; the same is done in each.
        name: of the network, such as `resnet_v1_50`.
        size: height and width of the result; None keeps them.

    Returns:
        `[batch, height, width, channels]`: float32 of integers, the same dtype of floats.

    Raises:
        UsageError: images are no numbers, or have channels that the preprocessing does not know.
    """
    del run_mode
    images = tf.convert_to_tensor(images)
    if images.dtype.is_floating:
        return _resized(images, size)
    if not images.dtype.is_integer:
        raise UsageError(f"{name}: expected images of numbers, got {images.dtype.name}")
    if images.dtype != tf.uint8:
        images = tf.cast(images, tf.uint8)
    augmentation = _evaluation(name, size or (images.shape[1] or 1, images.shape[2] or 1))
    if not images.shape[-1:].is_compatible_with([3]) and preprocessing_of(name) in _SIDED:
        raise UsageError(
            f"{name}: its preprocessing knows colour images, got {images.shape[-1]} channels",
            hint="give colour images, or a preprocess_fn of your own",
        )
    if size is not None and images.shape[1:3].as_list() != list(size):
        images = augmentation.place(images, Draws())
    return augmentation.finish(images)


def _evaluation(name: str, size: tuple[int, int]) -> Augmentation:
    """Return the preprocessing of a network's evaluation, for any size, without summaries."""
    family = preprocessing_of(name)
    options: dict[str, Any] = {}
    if family in _SIDED:
        options["resize_side_min"] = max(_VGG_SIDE, -(-max(size) * _VGG_SIDE // _VGG_CROP))
    elif family != "lenet_preprocessing":
        options["add_image_summaries"] = False
    return get_data_augmentation_fn(name, ModeKeys.EVAL, *size, **options)


def _resized(images: Any, size: tuple[int, int] | None) -> Any:
    """Resize a batch where its size is not known to be right; the dtype stays, integers are rounded."""
    if size is None or images.shape[1:3].as_list() == list(size):
        return images
    resized = resize(images, size)
    return tf.cast(tf.round(resized) if images.dtype.is_integer else resized, images.dtype)


@dataclass(frozen=True)
class Preparation:
    """All that is done to images before a network.

    Attributes:
        name: of the network.
        run_mode: one of `ModeKeys`.
        channels: of images that do not tell theirs.
        size: height and width that the user gave; None for none.
        preprocess_fn: `preprocess_fn(images)` or `preprocess_fn(images, run_mode)`; None for none.
    """

    name: str
    run_mode: str
    channels: int
    size: tuple[int, int] | None
    preprocess_fn: Callable[..., Any] | None

    def __call__(self, images: Any, source: str, target: str) -> Any:
        """Prepare a batch.

        Args:
            images: `[batch, height, width, channels]`, integers or floats.
            source: layout that the preprocessing function may return; NHWC is always understood.
            target: layout of the result.

        Returns:
            Floats of static height, width and channels, in `target`.

        Raises:
            UsageError: this is no batch of images, or its size is not known.
        """
        images = self._checked(images)
        channels = images.shape[-1]
        with tf1.name_scope("preprocess"):
            images = self._preprocessed(images)
        swapped = source == "NCHW" and images.shape[1] == channels and images.shape[3] != channels
        layout = "NCHW" if swapped else "NHWC"
        if None in images.shape[1:].as_list():
            raise self._unknown_size(images)
        if layout == target:
            return images
        return tf.transpose(images, [0, 3, 1, 2] if target == "NCHW" else [0, 2, 3, 1])

    def _checked(self, images: Any) -> Any:
        images = tf.convert_to_tensor(images)
        if images.shape.rank != 4:
            raise UsageError(
                f"{self.name}: expected images [batch, height, width, channels], got a tensor of shape {images.shape}",
                hint="one image becomes a batch with image[tf.newaxis], a tensor of unknown rank gets its shape with "
                "images.set_shape([None, height, width, channels])",
            )
        if images.shape[1] == 3 and (images.shape[3] or 0) > 4:
            raise UsageError(
                f"{self.name}: expected images [batch, height, width, channels], got [batch, channels, height, width]: "
                f"{images.shape}",
                hint="give them as they are read; data_format='NCHW' is of the network, which transposes them itself",
            )
        # Checked again when it runs: decoders do not always tell.
        if images.shape[-1] is None:
            images = tf.ensure_shape(images, [None, None, None, self.channels])
        if self._resizes or self.size is None:
            return images
        known = [a or b for a, b in zip(images.shape[1:3].as_list(), self.size, strict=True)]
        if known != list(self.size):
            tf1.logging.warning(
                "%s: %s is built for images of %dx%d, as they come; to image_height and image_width, %dx%d, they are "
                "resized in PREDICT and EXPORT only",
                *(self.name, self.run_mode, *known, *self.size),
            )
        return images if known == images.shape[1:3].as_list() else tf.ensure_shape(images, [None, *known, None])

    @property
    def _resizes(self) -> bool:
        return self.run_mode in (ModeKeys.PREDICT, ModeKeys.EXPORT)

    def _preprocessed(self, images: Any) -> Any:
        size = self.size if self._resizes else None
        if self.preprocess_fn is default_preprocess_fn:
            return default_preprocess_fn(images, self.run_mode, self.name, size)
        images = _resized(images, size)
        if self.preprocess_fn is not None:
            images = tf.convert_to_tensor(_called(self.preprocess_fn, images, self.run_mode))
            if images.shape.rank != 4:
                raise UsageError(
                    f"{self.name}: preprocess_fn returned a tensor of shape {images.shape}; expected a batch of images"
                )
        return images if images.dtype.is_floating else tf.cast(images, tf.float32)

    def _unknown_size(self, images: Any) -> UsageError:
        return UsageError(
            f"{self.name}: the size of the images must be known while the graph is built, got shape {images.shape}",
            hint="give image_height and image_width to mox.get_model_fn, or images.set_shape([None, height, width, 3])",
        )


def _called(function: Callable[..., Any], images: Any, run_mode: str) -> Any:
    """Call a user's function, with the mode only where it asks for it: an option of its own is not to be mistaken."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a C function that does not tell
        return function(images)
    named = any(p.name in ("mode", "run_mode") for p in parameters)
    second = parameters[1] if len(parameters) > 1 else None
    asked = second is not None and second.default is second.empty and second.kind is not second.KEYWORD_ONLY
    if not named and not asked:
        return function(images)
    return call_with_mode(function, (images,), run_mode, "preprocess_fn")
