"""TFRecord files, read and written without TensorFlow.

Each record: length (uint64 little-endian), masked CRC-32C of the length (uint32), the payload, masked CRC-32C of the
payload. The mask rotates the checksum right by 15 bits and adds 0xa282ead8, modulo 2**32.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moxserve.errors import DataError
from moxserve.file import File, atomic_open

__all__ = ["encode_record", "header_fits", "read_records", "write_records"]

_MASK_DELTA = 0xA282EAD8
_GZIP = b"\x1f\x8b"


def _masked_crc(data: bytes) -> int:
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def encode_record(payload: bytes) -> bytes:
    """Frame one payload as a record."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", _masked_crc(length)), payload, struct.pack("<I", _masked_crc(payload))))


def header_fits(head: bytes) -> bool:
    """Tell whether a file's first 12 bytes are the header of a record: its length with the right checksum."""
    return len(head) >= 12 and _masked_crc(head[:8]) == struct.unpack_from("<I", head, 8)[0]


def write_records(path: str | os.PathLike[str], payloads: Iterable[bytes]) -> int:
    """Write a file of records, all or nothing.

    Returns:
        How many records were written.
    """
    count = 0
    with atomic_open(path) as f:
        for payload in payloads:
            f.write(encode_record(payload))
            count += 1
    return count


def _read_exactly(stream: Any, size: int, path: str, index: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) != size:
        raise _CutError(f"{path}: record {index} is cut off: {len(data)} of {size} bytes")
    return data


def read_records(path: str | os.PathLike[str], damaged: Callable[[str], None] | None = None) -> Iterator[bytes]:
    """Yield the payloads of a record file, each checked against its checksums; gzip-compressed ones, too.

    Args:
        path: the file.
        damaged: told of what is damaged or cut off, instead of an error: that record is left out, and after a damaged
            header the rest of the file, where no next record can be found.

    Raises:
        DataError: the file is no TFRecord, damaged or cut off; names the record.
        MoxFileNotExistsException: it is not there.
    """
    name = os.fspath(path)
    with File(name, "rb") as f:
        stream: Any = f
        head = f.read(12)
        if head.startswith(_GZIP) and not header_fits(head):
            f.seek(0)
            stream = gzip.GzipFile(fileobj=f)
            head = b""
        try:
            yield from _payloads(stream, head, name, damaged)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            _tell(f"{name}: its compressed data is damaged or cut off: {error}", damaged)
        except _CutError as error:
            _tell(error.message, damaged)


class _CutError(DataError):
    """No further record can be found."""


def _tell(message: str, damaged: Callable[[str], None] | None) -> None:
    if damaged is None:
        raise DataError(message)
    damaged(message)


def _payloads(stream: Any, head: bytes, name: str, damaged: Callable[[str], None] | None) -> Iterator[bytes]:
    index = 0
    while head := head or stream.read(12):
        if len(head) != 12:
            raise _CutError(f"{name}: record {index} is cut off in its header")
        if not header_fits(head):
            raise _CutError(f"{name}: record {index} has a damaged header; is this a TFRecord file?")
        (length,) = struct.unpack_from("<Q", head)
        payload = _read_exactly(stream, length, name, index)
        (crc,) = struct.unpack("<I", _read_exactly(stream, 4, name, index))
        if _masked_crc(payload) == crc:
            yield payload
        else:
            _tell(f"{name}: record {index} is damaged: its checksum differs", damaged)
        index, head = index + 1, b""
