"""TFRecord files, read and written without TensorFlow.

Each record: length (uint64 little-endian), masked CRC-32C of the length (uint32), the payload, masked CRC-32C of the
payload. The mask rotates the checksum right by 15 bits and adds 0xa282ead8, modulo 2**32.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from moxserve.errors import DataError
from moxserve.file import File, write

__all__ = ["encode_record", "header_fits", "read_records", "write_records"]

_MASK_DELTA = 0xA282EAD8


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
    records = [encode_record(p) for p in payloads]
    write(path, b"".join(records), binary=True)
    return len(records)


def _read_exactly(f: BinaryIO, size: int, path: str, index: int) -> bytes:
    data = f.read(size)
    if len(data) != size:
        raise DataError(f"{path}: record {index} is cut off: {len(data)} of {size} bytes")
    return data


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the payloads of a record file, each checked against its checksums.

    Raises:
        DataError: the file is no TFRecord, damaged or cut off; names the record.
        MoxFileNotExistsException: it is not there.
    """
    name = os.fspath(path)
    with File(name, "rb") as f:
        index = 0
        while head := f.read(12):
            if len(head) != 12:
                raise DataError(f"{name}: record {index} is cut off in its header")
            length, crc = struct.unpack("<QI", head)
            if _masked_crc(head[:8]) != crc:
                raise DataError(f"{name}: record {index} has a damaged header; is this a TFRecord file?")
            payload = _read_exactly(f, length, name, index)  # type: ignore[arg-type]
            (crc,) = struct.unpack("<I", _read_exactly(f, 4, name, index))  # type: ignore[arg-type]
            if _masked_crc(payload) != crc:
                raise DataError(f"{name}: record {index} is damaged: its checksum differs")
            yield payload
            index += 1
