"""What an encoded image says of itself, told by content and never by the file's name; no pixel is decoded.

    JPEG  FF D8, segments `FF marker length`; a start of frame (C0..CF but C4, C8, CC) holds precision, height, width
          (uint16 big-endian) and components; APP14 `Adobe` says that CMYK is inverted; DA starts a scan; FF D9 ends
    PNG   signature, chunks `length type data crc`; IHDR: width, height (uint32 big-endian), bit depth, colour type
          (0 gray, 2 RGB, 3 palette, 4 gray + alpha, 6 RGB + alpha); IEND ends
    GIF   `GIF87a` or `GIF89a`, then width, height (uint16 little-endian) of the canvas
    BMP   `BM`, a DIB header at 14: its size, then width, height (int32, height negative from the top down; uint16 each
          in the 12-byte header); bits a pixel
    WebP  `RIFF` size `WEBP`, then a chunk `VP8 ` (lossy), `VP8L` (lossless) or `VP8X` (extended)

The orientation in EXIF is not looked at: TensorFlow does not apply it either.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from moxserve.errors import DataError
from moxserve.file import File

__all__ = ["MAX_PIXELS", "BadImageError", "ImageHeader", "check_complete", "image_format", "image_shape", "read_header"]

# A header can promise any size; nobody allocates more than this for it (800 MB in RGB).
MAX_PIXELS = 1 << 28

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}
_NO_FRAME = {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1}
_FORMATS = "JPEG, PNG, GIF, BMP or WebP"
# In coded data FF is followed by 00 (an FF), a restart marker or further FF; anything else is a marker.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_FIRST_BYTES = 1 << 16


class BadImageError(DataError):
    """An image cannot be decoded: cut off, empty, damaged, or no image at all.

    Args:
        name: of the image, such as its path.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class _Bad(Exception):  # noqa: N818 - never leaves this package
    """A reason, before the name of the image is known."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes of an image tell.

    Attributes:
        format: `jpeg`, `png`, `gif`, `bmp` or `webp`.
        height: rows.
        width: columns.
        channels: colours as an image in memory has them, 1 (gray) or 3; alpha is not counted.
        components: of a JPEG as stored: 1, 3, or 4 for CMYK; elsewhere equal to `channels`.
        inverted: a JPEG with Adobe's marker: 0 is full ink in its CMYK.
        height_at: where the height of a JPEG is written whose rows can be decoded from the top down to any row: one
            with a single, sequential scan; 0 elsewhere.
        block_rows: rows that are coded together in a JPEG: 8, or 16 where colours have half the height.
        scan_at: where the coded data of a JPEG begins; 0 when it was not reached.
    """

    format: str
    height: int
    width: int
    channels: int
    components: int
    inverted: bool = False
    height_at: int = 0
    block_rows: int = 8
    scan_at: int = 0


def image_format(data: bytes) -> str | None:
    """Tell the format by content: `jpeg`, `png`, `gif`, `bmp`, `webp`, `tiff`, or None."""
    if data[:2] == b"\xff\xd8":
        return "jpeg"
    if data[:8] == _PNG:
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    return "bmp" if data[:2] == b"BM" else None


def read_header(data: bytes, name: str = "image") -> ImageHeader:
    """Read the header.

    Args:
        data: the image, or as much of its beginning as holds the header.
        name: for messages.

    Raises:
        BadImageError: it is no image that can be decoded, or cut off within the header.
    """
    kind = image_format(data)
    try:
        if kind not in _PARSERS:
            raise _Bad(_not_an_image(data, kind))
        header = _PARSERS[kind](data)
    except (struct.error, IndexError):
        raise BadImageError(name, f"cut off within the header of the {kind} file, after {len(data)} bytes") from None
    except _Bad as bad:
        raise BadImageError(name, str(bad)) from None
    if header.height < 1 or header.width < 1 or header.height * header.width > MAX_PIXELS:
        raise BadImageError(
            name, f"its header says {header.height} x {header.width} pixels; expected 1 to {MAX_PIXELS} in all"
        )
    return header


def image_shape(path: str) -> tuple[int, int, int]:
    """Return height, width and channels (1 or 3; alpha is not counted) of a file.

    Raises:
        BadImageError: it is no image that can be decoded, or cut off within the header.
        MoxFileNotExistsException: it is not there.
    """
    with File(path, "rb") as f:
        data = f.read(_FIRST_BYTES)
        try:
            header = read_header(data, path)
        except BadImageError:
            rest = f.read()
            if not rest:
                raise
            header = read_header(data + rest, path)
    return header.height, header.width, header.channels


def check_complete(data: bytes, header: ImageHeader, name: str = "image") -> None:
    """Check that an image is all there: its end mark, lengths and checksums; decoders fill up what is missing.

    Args:
        data: the image.
        header: what `read_header` says of it.
        name: for messages.

    Raises:
        BadImageError: it is cut off or damaged.
    """
    if header.format == "jpeg" and data[-2:] == b"\xff\xd9":
        return  # nearly all
    check = _CHECKS.get(header.format)
    if check is None:
        return
    try:
        check(data, header)
    except (struct.error, IndexError):
        raise BadImageError(name, f"cut off after {len(data)} bytes") from None
    except _Bad as bad:
        raise BadImageError(name, str(bad)) from None


def _not_an_image(data: bytes, kind: str | None) -> str:
    if not data:
        return "is empty (0 bytes)"
    if not any(data):
        return f"holds nothing but {len(data)} zero bytes"
    if kind:
        return f"is a {kind.upper()} file; expected {_FORMATS}"
    return f"is no image; expected {_FORMATS}, found bytes {bytes(data[:8])!r}"


def _jpeg(data: bytes) -> ImageHeader:
    at, inverted, frame = 2, False, None
    while True:
        if data[at] != 0xFF:
            raise _Bad(f"damaged JPEG header: expected a marker at byte {at}, found {data[at]:#04x}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte: the marker comes after it
            at += 1
            continue
        if marker == 0xD9:
            raise _Bad("JPEG file without pixels")
        size = (data[at + 2] << 8) | data[at + 3]
        if size < 2:
            raise _Bad(f"damaged JPEG header: a segment of {size} bytes at byte {at}")
        if marker == 0xDA:
            break
        if marker == 0xEE:
            inverted = inverted or data[at + 4 : at + 9] == b"Adobe"
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            frame = (marker, at + 5, *struct.unpack_from(">HHB", data, at + 5))
            # A file read in part may end before the scan: the size is known.
            if at + 2 + size >= len(data):
                break
        at += 2 + size
    if frame is None:
        raise _Bad("JPEG file without a frame header")
    return _jpeg_header(frame, inverted, data, at)


def _jpeg_header(frame: tuple[int, ...], inverted: bool, data: bytes, at: int) -> ImageHeader:
    marker, height_at, height, width, components = frame
    if components not in (1, 3, 4):
        raise _Bad(f"JPEG file of {components} components; expected 1, 3 or 4")
    scan_at, single = 0, False
    first = height_at + 6
    block_rows = 8 * max(data[first + 3 * number] & 15 for number in range(components))
    if data[at + 1] == 0xDA and at + 4 < len(data):
        scan_at = at + 2 + ((data[at + 2] << 8) | data[at + 3])
        single = data[at + 4] == components and marker in _SEQUENTIAL
    channels = 1 if components == 1 else 3
    return ImageHeader(
        "jpeg", height, width, channels, components, inverted, height_at if single else 0, max(block_rows, 8), scan_at
    )


def _png(data: bytes) -> ImageHeader:
    length, kind, width, height, bits, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13 or colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16):
        raise _Bad(f"damaged PNG header: chunk {kind!r} of {length} bytes, colour type {colour}, {bits} bits")
    channels = _PNG_CHANNELS[colour]
    return ImageHeader("png", height, width, channels, channels)


def _gif(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("gif", height, width, 3, 3)


def _bmp(data: bytes) -> ImageHeader:
    size = struct.unpack_from("<I", data, 14)[0]
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif 40 <= size <= 124:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    else:
        raise _Bad(f"is no image; it begins as a BMP file, with a header of {size} bytes")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise _Bad(f"damaged BMP header: {bits} bits a pixel")
    return ImageHeader("bmp", abs(height), width, 3, 3)


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        low, high, low2, high2 = struct.unpack_from("<HBHB", data, 24)
        return ImageHeader("webp", (high2 << 16 | low2) + 1, (high << 16 | low) + 1, 3, 3)
    if kind == b"VP8L":
        mark, bits = struct.unpack_from("<BI", data, 20)
        if mark == 0x2F:
            return ImageHeader("webp", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 3, 3)
    if kind == b"VP8 ":
        mark, width, height = struct.unpack_from("<3sHH", data, 23)
        if mark == b"\x9d\x01\x2a":
            return ImageHeader("webp", height & 0x3FFF, width & 0x3FFF, 3, 3)
    if len(data) < 30:
        raise IndexError
    raise _Bad(f"damaged WebP header: chunk {bytes(kind)!r}")


_PARSERS = {"jpeg": _jpeg, "png": _png, "gif": _gif, "bmp": _bmp, "webp": _webp}


def _jpeg_is_complete(data: bytes, header: ImageHeader) -> None:
    # Something follows the end, or there is none: walk through the scans. Where a marker that is no end appears inside
    # coded data, its segment is stepped over.
    at = header.scan_at or len(data)
    while (found := _MARKER.search(data, at)) is not None:
        if found[1] == b"\xd9":
            return
        at = found.end() + struct.unpack_from(">H", data, found.end())[0]
    raise _Bad(f"cut off after {len(data)} bytes: the JPEG file has no end")


def _png_is_complete(data: bytes, _: ImageHeader) -> None:
    at, kind = 8, b""
    view = memoryview(data)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        crc = struct.unpack_from(">I", data, at + 8 + length)[0]
        # A small letter first: a chunk that is not needed for the pixels.
        if not kind[0] & 0x20 and zlib.crc32(view[at + 4 : at + 8 + length]) != crc:
            raise _Bad(f"damaged PNG file: wrong checksum of the chunk {kind!r} at byte {at}")
        at += 12 + length


def _bmp_is_complete(data: bytes, header: ImageHeader) -> None:
    offset, size = struct.unpack_from("<II", data, 10)
    bits = struct.unpack_from("<H", data, 24 if size == 12 else 28)[0]
    compression = 0 if size == 12 else struct.unpack_from("<I", data, 30)[0]
    expected = offset + (header.width * bits + 31) // 32 * 4 * header.height
    if compression in (0, 3) and len(data) < expected:
        raise _Bad(f"cut off after {len(data)} bytes: the BMP file has {expected}")


def _webp_is_complete(data: bytes, _: ImageHeader) -> None:
    expected = struct.unpack_from("<I", data, 4)[0] + 8
    if len(data) < expected:
        raise _Bad(f"cut off after {len(data)} bytes: the WebP file has {expected}")


_CHECKS = {"jpeg": _jpeg_is_complete, "png": _png_is_complete, "bmp": _bmp_is_complete, "webp": _webp_is_complete}
