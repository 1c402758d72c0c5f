"""IDX files, the format of MNIST: two zero bytes, one byte element type (8: uint8), one byte number of dimensions, each
dimension as big-endian uint32, then the elements in C order. Gzip-compressed when the name ends in `.gz`.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from moxserve.errors import DataError
from moxserve.file.errors import MoxFileNotExistsException
from moxserve.file.filesystem import locate

__all__ = ["encode_idx", "idx_shape", "read_idx"]

_UINT8 = 8


def encode_idx(array: np.ndarray, *, compressed: bool = True) -> bytes:
    """Encode an array of unsigned bytes.

    Args:
        array: `uint8` of any shape.
        compressed: gzip it; the same array always gives the same bytes.
    """
    header = bytes((0, 0, _UINT8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + np.ascontiguousarray(array, np.uint8).tobytes()
    return gzip.compress(data, mtime=0) if compressed else data


def idx_shape(path: str, rank: int | None = None) -> tuple[int, ...]:
    """Read the shape of a file, and nothing but its header.

    Args:
        path: the file.
        rank: the number of dimensions that it must have; None for any.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no IDX file of unsigned bytes, has another rank, or is damaged.
    """
    return _read(path, rank, body=False)[0]


def read_idx(path: str, rank: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a file of unsigned bytes.

    Args:
        path: the file.
        rank: the number of dimensions that it must have; None for any.

    Returns:
        A read-only uint8 array of the shape that the file announces.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no IDX file of unsigned bytes, has another rank, or is damaged or cut off.
    """
    shape, data = _read(path, rank, body=True)
    if len(data) != math.prod(shape):
        raise DataError(
            f"{path!r} has {len(data)} bytes of data; its header {list(shape)} announces {math.prod(shape)}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read(path: str, rank: int | None, body: bool) -> tuple[tuple[int, ...], bytes]:
    try:
        with _opened(path) as f:
            head = f.read(4)
            expected = _expected(path, head, rank)
            dimensions = f.read(4 * expected)
            data = f.read() if body else b""
    except FileNotFoundError:
        raise MoxFileNotExistsException(f"no such file: {path!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path!r} cannot be read, or is cut off: {error}") from None
    if len(dimensions) < 4 * expected:
        raise DataError(f"{path!r} is cut off in its header")
    return struct.unpack(f">{expected}I", dimensions), data


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    fs, place = locate(path)
    with fs.open(place, "rb") as raw:
        if path.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as f:
                yield f
        else:
            yield raw


def _expected(path: str, head: bytes, rank: int | None) -> int:
    """Check a file's first four bytes, and tell its number of dimensions."""
    if len(head) < 4 or head[:3] != bytes((0, 0, _UINT8)):
        raise DataError(
            f"{path!r} is no IDX file of unsigned bytes: expected it to begin with 00 00 08, got {head[:3].hex(' ')!r}"
        )
    if rank is not None and head[3] != rank:
        kind = {1: " (labels)", 3: " (images)"}
        raise DataError(
            f"{path!r} has {head[3]} dimensions{kind.get(head[3], '')}; expected {rank}{kind.get(rank, '')}"
        )
    return head[3]
