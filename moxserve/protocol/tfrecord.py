"""TFRecord files, read and written without TensorFlow.

Each record: length (uint64 little-endian), masked CRC-32C of the length (uint32), the payload, masked CRC-32C of the
payload. The mask rotates the checksum right by 15 bits and adds 0xa282ead8, modulo 2**32. A file may be compressed as a
whole, as a gzip or zlib stream.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moxserve.errors import DataError
from moxserve.file import File, atomic_open

__all__ = [
    "compression_of",
    "encode_record",
    "header_fits",
    "masked_crc",
    "read_records",
    "records_of",
    "write_records",
]

_MASK_DELTA = 0xA282EAD8
_GZIP = b"\x1f\x8b"
_ZLIB_METHOD = 8  # deflate, in the low half of a zlib stream's first byte
_CHUNK_BYTES = 1 << 18


def masked_crc(data: bytes) -> int:
    """Return the checksum of bytes as records have it."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def encode_record(payload: bytes) -> bytes:
    """Frame one payload as a record."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", masked_crc(payload))))


def header_fits(head: bytes) -> bool:
    """Tell whether a file's first 12 bytes are the header of a record: its length with the right checksum."""
    return len(head) >= 12 and masked_crc(head[:8]) == struct.unpack_from("<I", head, 8)[0]


def compression_of(head: bytes) -> str:
    """Tell from a file's first 12 bytes how the whole of it is compressed: `GZIP`, `ZLIB`, or not at all: empty."""
    if header_fits(head):
        return ""
    if head.startswith(_GZIP):
        return "GZIP"
    # RFC 1950: the method, a window of at most 32 KiB, and the first two bytes as a multiple of 31.
    first = int.from_bytes(head[:2], "big")
    return "ZLIB" if len(head) >= 2 and head[0] & 15 == _ZLIB_METHOD and head[0] < 0x80 and not first % 31 else ""


class _ZlibStream(io.RawIOBase):
    """The content of a zlib stream."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail or self._source.read(_CHUNK_BYTES)
            data = self._inflate.decompress(compressed, len(buffer))
            if not compressed and not data:
                raise EOFError("the stream ends before its end mark")
        buffer[: len(data)] = data
        return len(data)


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
    """Yield the payloads of a record file, each checked against its checksums; of compressed files, too.

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
        yield from records_of(f, name, damaged)


def records_of(file: Any, name: str, damaged: Callable[[str], None] | None = None) -> Iterator[bytes]:
    """Yield the payloads of an open file, which can seek; otherwise as `read_records`.

    Args:
        file: at its beginning, open for reading bytes.
        name: of the file, for messages.
        damaged: as `read_records`.
    """
    stream: Any = file
    head = file.read(12)
    if compression := compression_of(head):
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if compression == "GZIP" else io.BufferedReader(_ZlibStream(file))
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
        if masked_crc(payload) == crc:
            yield payload
        else:
            _tell(f"{name}: record {index} is damaged: its checksum differs", damaged)
        index, head = index + 1, b""
