"""Height, width and channels of a PNG or JPEG file, from its first bytes; the pixels are not decoded.

PNG: signature, then the IHDR chunk with width, height (uint32 big-endian), bit depth, colour type (0 gray, 2 RGB,
3 palette, 4 gray+alpha, 6 RGB+alpha). JPEG: segments `FF marker length`; a start-of-frame segment (C0..CF but C4, C8,
CC) holds precision, height, width (uint16 big-endian) and the number of components.
"""

from __future__ import annotations

import struct
from typing import Any

from moxserve.errors import DataError
from moxserve.file import File

__all__ = ["image_shape"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}
_NO_FRAME = {0xC4, 0xC8, 0xCC}


def image_shape(path: str) -> tuple[int, int, int]:
    """Return height, width and channels (1 or 3; alpha is not counted).

    Raises:
        DataError: the file is neither PNG nor JPEG, or cut off.
    """
    with File(path, "rb") as f:
        head = f.read(26)
        if head.startswith(_PNG) and len(head) == 26:
            width, height, _, colour = struct.unpack(">IIBB", head[16:26])
            return height, width, _PNG_CHANNELS.get(colour, 3)
        if head.startswith(b"\xff\xd8"):
            shape = _jpeg(f)
            if shape is not None:
                return shape
    raise DataError(f"{path} is no PNG or JPEG file, or cut off")


def _jpeg(f: Any) -> tuple[int, int, int] | None:
    f.seek(2)
    while True:
        lead = f.read(4)
        if len(lead) < 4 or lead[0] != 0xFF:
            return None
        marker, size = lead[1], struct.unpack(">H", lead[2:])[0]
        if marker == 0xFF:  # fill byte: the marker comes after it
            f.seek(-3, 1)
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            frame = f.read(6)
            if len(frame) < 6:
                return None
            _, height, width, components = struct.unpack(">BHHB", frame)
            return height, width, 1 if components == 1 else 3
        f.seek(size - 2, 1)
