"""Large objects that are fetched in ranges, several at once: one connection to a store rarely fills the line.

All ranges are of one version of the object. The first comes through the request that told its size.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from moxserve.file.reader import ObjectReader

__all__ = ["WORTH_BYTES", "fetch"]

WORTH_BYTES = 32 << 20
_LEAST_SPAN_BYTES = 16 << 20
_MOST_SPAN_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20


def fetch(reader: ObjectReader, fd: int, streams: int) -> None:
    """Write all of an object to a file.

    Args:
        reader: of the object, at its beginning.
        fd: the file, which is empty.
        streams: how many ranges may come at once.

    Raises:
        MoxFileReadException: the rest never came, or the object was replaced meanwhile.
    """
    stop = threading.Event()
    # Two for each stream, so that one that is slow does not keep the others waiting for long.
    span = min(_MOST_SPAN_BYTES, max(_LEAST_SPAN_BYTES, -(-reader.size // (2 * streams))))
    spans = [(start, min(start + span, reader.size)) for start in range(0, reader.size, span)]
    with ThreadPoolExecutor(streams, thread_name_prefix="moxserve-ranges") as pool:
        first, *others = spans
        coming = [pool.submit(_take, reader, fd, first, stop)]
        coming += [pool.submit(_take_span, reader, fd, span, stop) for span in others]
        try:
            for done in coming:
                done.result()
        except BaseException:
            stop.set()
            raise


def _take_span(reader: ObjectReader, fd: int, span: tuple[int, int], stop: threading.Event) -> None:
    if not stop.is_set():
        with reader.span(*span) as part:
            _take(part, fd, span, stop)


def _take(reader: ObjectReader, fd: int, span: tuple[int, int], stop: threading.Event) -> None:
    at, end = span
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, end - at)))
    while at < end and not stop.is_set():
        count = reader.readinto(buffer[: end - at])
        for written in _written(fd, buffer[:count], at):
            at += written


def _written(fd: int, data: memoryview, at: int) -> Iterator[int]:
    while data:
        count = os.pwrite(fd, data, at)
        yield count
        data, at = data[count:], at + count
