"""MNIST's gzipped IDX files: big-endian uint32 magic (0x801 labels, 0x803 images), the dimensions, then uint8."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from typing import Any

import numpy as np

from moxserve.errors import DataError

__all__ = ["file_name", "read_array", "read_headers"]

_MAGIC = {"images": (0x803, 3), "labels": (0x801, 1)}


def file_name(part: str, kind: str) -> str:
    """Return a file's name.

    Args:
        part: `train` or `t10k`.
        kind: `images` or `labels`.
    """
    return f"{part}-{kind}-idx{_MAGIC[kind][1]}-ubyte.gz"


def _read(path: str, kind: str, body: bool) -> tuple[tuple[int, ...], bytes]:
    magic, rank = _MAGIC[kind]
    try:
        with gzip.open(path, "rb") as f:
            head = f.read(4 + 4 * rank)
            data = f.read() if body else b""
    except FileNotFoundError:
        raise DataError(f"no such file: {path!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not gzip, or cut off: {error}") from None
    if len(head) < 4 + 4 * rank or struct.unpack(">I", head[:4])[0] != magic:
        raise DataError(
            f"{path} is no IDX file of {kind}: expected it to start with {magic:#010x}, got 0x{head[:4].hex()}"
        )
    shape = struct.unpack(f">{rank}I", head[4:])
    if body and len(data) != math.prod(shape):
        raise DataError(f"{path} is cut off: {len(data)} of {math.prod(shape)} bytes")
    return shape, data


def read_array(folder: str, part: str, kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read one file: images `[n, height, width] uint8` or labels `[n] uint8`.

    Raises:
        DataError: it is not there, not IDX, or cut off.
    """
    shape, data = _read(os.path.join(folder, file_name(part, kind)), kind, body=True)
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_headers(folder: str) -> dict[str, tuple[int, int, int]]:
    """Return rows, height and width of `train` and `t10k`, reading only the files' first bytes.

    Raises:
        DataError: a file is missing or of another kind, or a pair differs in number.
    """
    missing = [
        name
        for name in (file_name(part, kind) for part in ("train", "t10k") for kind in _MAGIC)
        if not os.path.isfile(os.path.join(folder, name))
    ]
    if missing:
        raise DataError(f"{folder!r} lacks {', '.join(missing)}")
    shapes = {}
    for part in ("train", "t10k"):
        images, _ = _read(os.path.join(folder, file_name(part, "images")), "images", body=False)
        labels, _ = _read(os.path.join(folder, file_name(part, "labels")), "labels", body=False)
        if images[0] != labels[0]:
            raise DataError(f"{folder!r}: {part} has {images[0]} images and {labels[0]} labels")
        shapes[part] = (images[0], images[1], images[2])
    return shapes
