"""One image from its bytes: exactly, or only the window that is wanted.

JPEGs are decoded by libjpeg-turbo with its accurate integer transform (through simplejpeg where it is installed, else
through OpenCV; the pixels are the same): bit for bit `tf.io.decode_jpeg` with `dct_method="INTEGER_ACCURATE"`. The
default of TensorFlow's decoders is the coarser fast transform (`INTEGER_FAST`), which differs by 1 of 255 on average
and by up to 32 in images of quality 100; it was taken for speed, of which vector instructions have left 3 %.

Windows of most JPEGs are decoded by the native decoder where the user has built it (see `native`): the same pixels,
sooner.

What TensorFlow does otherwise:
* PNG of any bit depth, gray, palette and alpha: bit for bit the same, but for the alpha of 1-bit files (TensorFlow
  gives 1, we 255) and of gray files with a transparent shade (which we ignore).
* BMP with a palette: TensorFlow gives the numbers of the palette's entries, we the colours; its alpha is ignored.
* CMYK: `colour = ink * black / 255` on inverted values, rounded down, as TensorFlow does with the accurate transform.
* GIF: the first frame. TIFF is refused.
* GIF, BMP and WebP can be converted to gray, which TensorFlow refuses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from moxserve.errors import MissingExtraError, UsageError
from moxserve.images.geometry import Geometry, Window
from moxserve.images.header import BadImageError, ImageHeader, check_complete, read_header
from moxserve.images.native import library as native

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

__all__ = ["CHANNELS", "WindowDecoder", "cut", "decode", "opencv"]

CHANNELS = (1, 3, 4)


def opencv() -> ModuleType:
    """Return cv2.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    # It tells of each damaged image on stderr, past every log; we count them, and name them ourselves.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("opencv-python-headless", "dataflow", "working with images") from None
    return cv2


def decode(data: bytes, channels: int = 3, name: str = "image") -> np.ndarray:
    """Decode an image: `[height, width, channels] uint8`, RGB.

    The orientation in EXIF is not applied, as TensorFlow does not apply it; alpha is dropped, not blended.

    Args:
        data: JPEG, PNG, GIF, BMP or WebP, told by content.
        channels: 1 (gray), 3 (RGB) or 4 (RGB and alpha, 255 where the image has none).
        name: for messages.

    Raises:
        BadImageError: it cannot be decoded; names it and says why.
        UsageError: `channels` is none of these.
    """
    return WindowDecoder(None, channels).whole(data, name)


def cut(image: np.ndarray, window: Window, out: np.ndarray | None = None) -> np.ndarray:
    """Cut a window out of an image, resize it bilinearly (pixel centres at halves, no antialiasing) and flip it.

    Args:
        image: `[height, width, channels] uint8`.
        window: what is wanted.
        out: `[out_height, out_width, channels] uint8`, contiguous, to write to.

    Returns:
        `out`, or a new array.
    """
    cv2 = opencv()
    size = (window.out_height, window.out_width)
    channels = image.shape[2]
    if out is None:
        out = np.empty((*size, channels), np.uint8)
    elif out.shape != (*size, channels):
        raise UsageError(f"a window of {size} pixels and {channels} channels does not fit into {out.shape}")
    bottom, right = max(window.top + window.height, 0), max(window.left + window.width, 0)
    part = image[max(window.top, 0) : bottom, max(window.left, 0) : right]
    if part.shape[:2] != (window.height, window.width):
        part = _padded(part, window, image.shape)
    if part.shape[:2] == size:
        out[...] = part
    else:
        # OpenCV drops a last axis of length 1; the memory is the same.
        cv2.resize(part, size[::-1], dst=out if channels > 1 else out[..., 0], interpolation=cv2.INTER_LINEAR)
    if window.flip:
        flat = out if channels > 1 else out[..., 0]
        cv2.flip(flat, 1, dst=flat)
    return out


def _padded(part: np.ndarray, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """Put the part of a window that lies in the image where it belongs, with zeros around it."""
    whole = np.zeros((window.height, window.width, shape[2]), np.uint8)
    if part.size:
        top, left = max(-window.top, 0), max(-window.left, 0)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole


@dataclass(frozen=True)
class WindowDecoder:
    """Decodes images, of which a geometry says what is wanted. Holds no state: threads share it.

    Attributes:
        geometry: draws the window; None takes the whole image as it is.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        exact: decode each pixel of the window as `decode` does. Otherwise a JPEG whose window is at least twice as
            large as the result is decoded at a half, a quarter or an eighth of its size; where simplejpeg is installed
            all JPEGs take the fast transform and the plain upsampling of colours. Windows are rounded to whole pixels
            of what was decoded.

    Raises:
        UsageError: `channels` is none of these.
    """

    geometry: Geometry | None = None
    channels: int = 3
    exact: bool = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.channels not in CHANNELS:
            raise UsageError(f"channels={self.channels!r}: expected 1 (gray), 3 (RGB) or 4 (RGBA)")

    def whole(self, data: bytes, name: str = "image") -> np.ndarray:
        """Decode all of an image; see `decode`."""
        header = read_header(data, name)
        check_complete(data, header, name)
        return _pixels(data, header, self.channels, name)

    def __call__(
        self, data: bytes, rng: np.random.Generator, out: np.ndarray | None = None, name: str = "image"
    ) -> np.ndarray:
        """Decode the window of an image.

        Args:
            data: the encoded image.
            rng: what the geometry draws from.
            out: `[height, width, channels] uint8`, contiguous, to write to; the window must have its size.
            name: for messages.

        Returns:
            `out`, or a new array.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        if self.geometry is None:
            whole = self.whole(data, name)
            return whole if out is None else cut(whole, Window(0, 0, *whole.shape[:2], *out.shape[:2]), out)
        header = read_header(data, name)
        check_complete(data, header, name)
        window = self.geometry.window(header.height, header.width, rng)
        rows = min(max(window.top + window.height, 1), header.height)
        if not self.exact and header.format == "jpeg" and header.components != 4:
            reduced = _reduced(data, header, self.channels, rows, _factor(window))
            if reduced is not None:
                return cut(*_scaled(reduced, window, header), out)
        if (decoder := native.installed()) is not None:
            part = decoder.part(data, header, min(self.channels, 3), window)
            if part is not None:
                return cut(_with_channels(part[0], self.channels), part[1], out)
        return cut(_pixels(data, header, self.channels, name, rows), window, out)


def _factor(window: Window) -> int:
    factor = min(window.height // window.out_height, window.width // window.out_width)
    return next((f for f in (8, 4, 2) if factor >= f), 1)


def _scaled(reduced: _Reduced, window: Window, header: ImageHeader) -> tuple[np.ndarray, Window]:
    """The reduced image, and the window of it that covers the same part."""
    factor = reduced.factor
    scaled = Window(
        round(window.top / factor), round(window.left / factor),
        max(1, round(window.height / factor)), max(1, round(window.width / factor)),
        window.out_height, window.out_width, window.flip,
    )  # fmt: skip
    # Rounding must not reach past the image where the window does not.
    inside = window.top >= 0 and window.left >= 0
    inside = inside and window.top + window.height <= header.height and window.left + window.width <= header.width
    if inside:
        height, width = reduced.image.shape[:2]
        top, left = min(scaled.top, height - 1), min(scaled.left, width - 1)
        scaled = replace(
            scaled, top=top, left=left, height=min(scaled.height, height - top), width=min(scaled.width, width - left)
        )
    return reduced.image, scaled


class _Reduced(NamedTuple):
    """A JPEG decoded at a fraction of its size, from the top down to at least the rows that were asked for."""

    image: np.ndarray
    factor: int


def _reduced(data: bytes, header: ImageHeader, channels: int, rows: int, factor: int) -> _Reduced | None:
    """Decode a JPEG at a fraction of its size, or quickly; None where the decoder cannot."""
    if simplejpeg is not None:
        image = _simplejpeg(data, header, channels, rows, factor)
        return None if image is None else _Reduced(_with_channels(image, channels), factor)
    if factor == 1:
        return None
    cv2 = opencv()
    flags = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[factor]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        return None
    to = {1: cv2.COLOR_BGR2GRAY, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGR2RGBA}[channels]
    return _Reduced(_with_channels(cv2.cvtColor(image, to), channels), factor)


def _pixels(data: bytes, header: ImageHeader, channels: int, name: str, rows: int = 0) -> np.ndarray:
    """Decode all rows, or at least the first `rows` where the format lets one stop early."""
    image = None
    if header.components == 4:
        image = _cmyk(data, header, name)
    elif header.format == "jpeg" and simplejpeg is not None:
        image = _simplejpeg(data, header, channels, rows or header.height)
    if image is None:
        image = _opencv(data, header, channels)
    if image is None:
        raise BadImageError(name, f"damaged {header.format.upper()} file: the decoder refuses it")
    if not rows and image.shape[:2] != (header.height, header.width):
        raise BadImageError(
            name, f"its header says {header.height} x {header.width} pixels, it has {image.shape[0]} x {image.shape[1]}"
        )
    return _with_channels(image, channels)


def _simplejpeg(data: bytes, header: ImageHeader, channels: int, rows: int, factor: int = 0) -> np.ndarray | None:
    """Decode a JPEG from the top down to at least `rows`; None if it cannot be.

    Args:
        data: the image.
        header: of it.
        channels: 1, otherwise RGB.
        rows: how many are wanted.
        factor: 0 decodes exactly; 1, 2, 4 or 8 quickly, at that fraction of the size.
    """
    encoded: bytes | bytearray = data
    height = header.height
    if header.height_at:
        # All rows above are the same whatever the height: with a smaller one the decoder stops early. The last row of a
        # block is not: its colours are mixed with those of the row below.
        enough = (rows // header.block_rows + 1) * header.block_rows
        if enough < height:
            height = enough
            encoded = bytearray(data)
            encoded[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    width, options = header.width, {}
    if factor:
        height, width = -(-height // factor), -(-width // factor)
        options = {"fastdct": True, "fastupsample": True, "min_height": height, "min_width": width}
    return _turbo(encoded, "GRAY" if channels == 1 else "RGB", (height, width), options)


def _turbo(
    data: bytes | bytearray, colours: str, size: tuple[int, int], options: Mapping[str, Any]
) -> np.ndarray | None:
    """Decode by simplejpeg to `size`, or to less if `options` allow it; None if it cannot be.

    An error after a warning passes for another warning there, and what comes back is memory that nobody wrote to. Rows
    are written from the top down, so a mark that is still in the last one tells; another mark, whether the image has
    that colour.
    """
    height, width = size
    row = width * {"GRAY": 1, "RGB": 3, "CMYK": 4}[colours]
    memory = np.empty(height * row, np.uint8)
    for mark in (0xA5, 0x5A):
        # Of an image that comes out smaller the last row may be anywhere.
        memory[0 if options else -row :] = mark
        try:
            image = simplejpeg.decode_jpeg(data, colours, strict=False, buffer=memory, **options)
        except ValueError:
            return None
        if not options and image.shape[:2] != size:
            return None
        if (image[-1] != mark).any():
            return image
    return None


def _cmyk(data: bytes, header: ImageHeader, name: str) -> np.ndarray | None:
    if simplejpeg is None:
        if header.inverted:
            return None  # OpenCV's formula may be 1 lower
        raise BadImageError(name, "a CMYK file without Adobe's marker, which OpenCV inverts; simplejpeg can read it")
    inks = _turbo(data, "CMYK", (header.height, header.width), {})
    if inks is None:
        return None
    light = (inks if header.inverted else ~inks).astype(np.uint16)
    return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)


def _opencv(data: bytes, header: ImageHeader, channels: int) -> np.ndarray | None:
    cv2 = opencv()
    flags = cv2.IMREAD_COLOR_RGB
    if channels == 4 and header.format != "jpeg":
        flags = cv2.IMREAD_UNCHANGED
    elif channels == 1 and header.components != 4:
        flags = cv2.IMREAD_GRAYSCALE
    try:
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if image is None or flags != cv2.IMREAD_UNCHANGED:
        return image
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return image
    to = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA
    return cv2.cvtColor(image, to)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    found = 1 if image.ndim == 2 else image.shape[2]
    if found == channels:
        return image.reshape(*image.shape[:2], channels)
    cv2 = opencv()
    convert = {
        (1, 3): cv2.COLOR_GRAY2RGB, (1, 4): cv2.COLOR_GRAY2RGBA, (3, 4): cv2.COLOR_RGB2RGBA, (3, 1): cv2.COLOR_RGB2GRAY,
    }  # fmt: skip
    return cv2.cvtColor(image, convert[found, channels]).reshape(*image.shape[:2], channels)
