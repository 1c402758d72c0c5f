"""Pictures as the tensors that a signature wants.

input of a signature        a picture becomes
[?, h, w, c]                height and width resized to h and w where they are fixed (bilinear), c = 1 grey, 3 RGB,
                            4 RGBA, free: RGB
[?, h, w]                   grey
[?, n]                      grey and flattened where n is a square number, else RGB where n is three times one
[?] string                  the file's bytes as they are; the model decodes them
uint8 and other integers    values 0..255
floating types              values 0..1
other ranks                 refused
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from moxserve.client.calls import Array
from moxserve.errors import DataError, MissingExtraError, UsageError
from moxserve.types import TensorSpec

__all__ = ["SUFFIXES", "ImageForm", "array_to_input", "file_to_input", "image_form"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class ImageForm:
    """How a picture is to look.

    Attributes:
        spec: the input that takes it.
        height: in pixels; None keeps the picture's own.
        width: in pixels; None keeps the picture's own.
        channels: 1, 3 or 4.
        layout: `hwc`, `hw` or `flat`.
        encoded: the file's bytes are sent as they are.
    """

    spec: TensorSpec
    height: int | None = None
    width: int | None = None
    channels: int = 3
    layout: str = "hwc"
    encoded: bool = False


def image_form(spec: TensorSpec) -> ImageForm:
    """Tell how pictures fit an input.

    Raises:
        UsageError: the input cannot be a picture.
    """
    if spec.dtype.name == "string" and (spec.shape is None or len(spec.shape) == 1):
        return ImageForm(spec, encoded=True)
    shape = spec.shape
    if shape is not None and spec.dtype.name not in ("string", "bool") and spec.dtype.numpy.kind != "c":
        if len(shape) == 4 and shape[3] in (None, *_MODES):
            return ImageForm(spec, shape[1], shape[2], shape[3] or 3, "hwc")
        if len(shape) == 3:
            return ImageForm(spec, shape[1], shape[2], 1, "hw")
        flat = _flat_form(spec, shape[1]) if len(shape) == 2 else None
        if flat is not None:
            return flat
    raise UsageError(
        f"pictures do not fit input {spec}; expected [rows, height, width, channels] with 1, 3 or 4 channels, "
        "[rows, height, width], [rows, pixels] or string[rows]"
    )


def _flat_form(spec: TensorSpec, size: int | None) -> ImageForm | None:
    for channels in (1, 3):
        side = math.isqrt((size or 0) // channels)
        if size and side * side * channels == size:
            return ImageForm(spec, side, side, channels, "flat")
    return None


def file_to_input(path: str, form: ImageForm) -> Array:
    """Read a picture file as one row.

    Raises:
        DataError: it cannot be read as a picture.
        MissingExtraError: Pillow is not installed.
    """
    if form.encoded:
        with open(path, "rb") as f:
            return _bytes_scalar(f.read())
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("Pillow", "data", "reading pictures") from None
    try:
        with Image.open(path) as image:
            pixels = _convert(image, form)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error})") from None
    return _to_tensor(pixels, form)


def _convert(image: object, form: ImageForm) -> Array:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise DataError(f"expected a picture, got {type(image).__name__}")
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255; TensorFlow's decoder and this keep the upper eight bits.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    picture = image.convert(_MODES[form.channels])
    size = (form.width or picture.width, form.height or picture.height)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _bytes_scalar(data: bytes) -> Array:
    scalar = np.empty((), object)
    scalar[()] = data
    return scalar


def _to_tensor(pixels: Array, form: ImageForm) -> Array:
    """Bring `[h, w]` or `[h, w, c] uint8` to the layout and dtype of the input."""
    if form.layout == "hwc" and pixels.ndim == 2:
        pixels = pixels[..., None]
    if form.layout == "flat":
        pixels = pixels.reshape(-1)
    if form.spec.dtype.name in _FLOATS:
        return (pixels.astype(np.float32) / 255).astype(form.spec.dtype.numpy)
    return pixels.astype(form.spec.dtype.numpy, copy=False)


def array_to_input(pixels: Array, form: ImageForm) -> Array:
    """Turn `[h, w] uint8` pixels into one row, by the same rules as a file.

    Raises:
        DataError: the input wants files, not pixels.
    """
    if form.encoded:
        raise DataError(f"input {form.spec} takes encoded files; this data set holds bare pixels")
    if form.channels == 1 and form.height in (None, pixels.shape[0]) and form.width in (None, pixels.shape[1]):
        return _to_tensor(pixels, form)
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "data", "resizing pictures") from None
    return _to_tensor(_convert(Image.fromarray(pixels), form), form)


def is_image(name: str) -> bool:
    """Tell whether a file name is that of a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
