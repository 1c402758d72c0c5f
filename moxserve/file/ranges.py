"""Large objects that are fetched in ranges, several at once: one connection to a store rarely fills the line.

All ranges are of one version of the object. The first comes through the request that told its size; the others by
obstore where it can, and from where that fails, by boto3.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from moxserve.file import stopping
from moxserve.file.native import is_plain, open_native
from moxserve.file.reader import ObjectReader

if TYPE_CHECKING:
    from moxserve.file.s3 import Bucket

__all__ = ["WORTH_BYTES", "Quick", "fetch", "quick_spans"]

WORTH_BYTES = 32 << 20
_LEAST_SPAN_BYTES = 16 << 20
_MOST_SPAN_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_PIECE_BYTES = 256 << 10

Quick = Callable[[int, int], Iterator[bytes]]


def fetch(reader: ObjectReader, fd: int, streams: int, quick: Quick | None = None) -> None:
    """Write all of an object to a file.

    Args:
        reader: of the object, at its beginning.
        fd: the file, which is empty.
        streams: how many ranges may come at once.
        quick: gives the content of a range of the same version, piece by piece, and may fail; None: nothing does.

    Raises:
        MoxFileReadException: the rest never came, or the object was replaced meanwhile.
    """
    # Two for each stream, so that one that is slow does not keep the others waiting for long.
    span = min(_MOST_SPAN_BYTES, max(_LEAST_SPAN_BYTES, -(-reader.size // (2 * streams))))
    spans = [(start, min(start + span, reader.size)) for start in range(0, reader.size, span)]
    first, *others = spans
    with stopping.working_together(streams, "moxserve-ranges") as pool:
        coming = [pool.submit(_take, reader, fd, first)]
        coming += [pool.submit(_take_span, reader, fd, span, quick) for span in others]
        for done in coming:
            done.result()


def _take_span(reader: ObjectReader, fd: int, span: tuple[int, int], quick: Quick | None) -> None:
    at, end = span
    if quick is not None:
        for piece in quick(at, end):
            for written in _written(fd, memoryview(piece)[: end - at], at):
                at += written
            stopping.check()
    if at < end:
        with reader.span(at, end) as part:
            _take(part, fd, (at, end))


def _take(reader: ObjectReader, fd: int, span: tuple[int, int]) -> None:
    at, end = span
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, end - at)))
    while at < end:
        count = reader.readinto(buffer[: end - at])
        for written in _written(fd, buffer[:count], at):
            at += written


def _written(fd: int, data: memoryview, at: int) -> Iterator[int]:
    while data:
        count = os.pwrite(fd, data, at)
        yield count
        data, at = data[count:], at + count


def quick_spans(bucket: Bucket, key: str, etag: str) -> Quick | None:
    """Give what fetches ranges of a version of an object by obstore; None where it cannot.

    What it gives ends early when obstore fails.
    """
    opened = open_native(bucket) if etag and is_plain(key) else None
    if opened is None:
        return None

    def pieces(start: int, end: int) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError

        with contextlib.suppress(BaseError, OSError, ValueError):
            answer = obstore.get(opened, key, options={"range": (start, end), "if_match": etag})
            if tuple(answer.range) == (start, end):
                yield from answer.stream(min_chunk_size=_PIECE_BYTES)

    return pieces
